"""Texts like those to come: what the ranges of activations, and gates, are measured on."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coda_compile.errors import CompileError
from coda_compile.precision import Precision
from coda_compile.text_files import columns, read_texts
from coda_targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Calibration = Path | str | Sequence[Arrays]
_MOST = 128  # texts, spread over a longer file


def check(calibration: Calibration | None, precision: Precision, *, several: bool, pruned: bool) -> None:
    """Refuse what needs texts without them, and texts that nothing needs, before anything else is done.

    Raises:
        CompileError: one of the two, or several models, whose activations and gates differ.
    """
    if pruned and calibration is None:
        raise CompileError("--prune-gates looks at gates in texts like those to come: give them with --calibrate FILE")
    if not pruned and (calibration is None) == precision.calibrated:
        if precision.calibrated:
            raise CompileError(f"--precision {precision.name} needs texts like those to come: give --calibrate FILE")
        raise CompileError(f"--precision {precision.name} is not calibrated: leave --calibrate out")
    if calibration is not None and several:
        what = "be pruned together" if precision.shared else f"share --precision {precision.name}"
        raise CompileError(f"several tasks cannot {what}: compile each by itself")


def inputs(
    calibration: Calibration | None, tokenizer: "PreTrainedTokenizerBase | None", signature: Signature
) -> Iterator[Mapping[str, Tensor]]:
    """What a model takes, text by text, so that no padding is among it.

    Args:
        calibration: a CSV file with the column ``text``, and ``text_pair`` of pairs, or arrays by name;
            ``None`` is no text.
        signature: of the model.

    Raises:
        CompileError: a file, and no tokenizer to read it with.
        CodaError: a file that is not as described.
    """
    if calibration is None:
        return
    if not isinstance(calibration, Path | str):
        for arrays in calibration:
            yield {name: torch.from_numpy(arrays[name]) for name in signature.names if name in arrays}
        return
    if tokenizer is None:
        raise CompileError("this model has no tokenizer to read --calibrate with: give one with --tokenizer PATH")
    texts = read_texts(Path(calibration))
    for text in texts[:: -(-len(texts) // _MOST)]:
        encoded = tokenizer(**columns([text]), truncation=True, max_length=signature.max_length, return_tensors="pt")
        yield {name: encoded[name] for name in signature.names if name in encoded}
