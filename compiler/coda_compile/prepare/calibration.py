"""Calibration data: sequences on which activation ranges and gates are measured."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coda_compile.errors import OptionError
from coda_compile.text_files import columns, read_texts
from coda_targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Calibration = Path | str | Sequence[Arrays]
_MOST = 128  # texts, spread over a longer file


def inputs(
    calibration: Calibration | None, tokenizer: "PreTrainedTokenizerBase | None", signature: Signature
) -> Iterator[Mapping[str, Tensor]]:
    """The model's inputs, one sequence at a time, so without padding.

    Args:
        calibration: a CSV file with the column ``text``, and ``text_pair`` of pairs, or arrays by name;
            ``None`` is no text.
        signature: of the model.

    Raises:
        OptionError: a file, and no tokenizer to read it with.
        CodaError: a file that is not as described.
    """
    if calibration is None:
        return
    if not isinstance(calibration, Path | str):
        for arrays in calibration:
            yield {name: torch.from_numpy(arrays[name]) for name in signature.names if name in arrays}
        return
    if tokenizer is None:
        raise OptionError("this model has no tokenizer to read {calibration} with: give a {tokenizer}")
    texts = read_texts(Path(calibration))
    for text in texts[:: -(-len(texts) // _MOST)]:
        encoded = tokenizer(**columns([text]), truncation=True, max_length=signature.max_length, return_tensors="pt")
        yield {name: encoded[name] for name in signature.names if name in encoded}
