"""Reference outputs of another library's own model, to compare a converted one with."""

from typing import Any

import torch
from torch import Tensor

from coda_compile.errors import CompileError
from coda_models.errors import UnsupportedModelError
from coda_models.model import CodaModel
from coda_ops.errors import first_line
from coda_targets.signature import Signature

_CLOSE = 1e-4  # weights are merged in float32
_TOKENS = 11


def few_tokens(signature: Signature, *, padded: bool = False) -> dict[str, Tensor]:
    """A few short sequences.

    Args:
        padded: some are shorter; the libraries of adapters do not agree with themselves on padding everywhere.
    """
    arrays = signature.random(3, min(_TOKENS, signature.max_length), ragged=padded)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def answers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits or, without a head, hidden states."""
    plain = {} if isinstance(model, CodaModel) else {"return_dict": True}  # some configurations ask for tuples
    with torch.inference_mode():
        output = model(**inputs, **plain)
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def wanted_answers(model: Any, inputs: dict[str, Tensor], whose: str, what: str = "this model") -> Tensor:
    """The outputs of a library's own model.

    Args:
        whose: the library's name.
        what: it is asked to run, for messages.

    Raises:
        UnsupportedModelError: it cannot run.
    """
    try:
        return answers(model, inputs)
    except Exception as error:  # whatever the library's own code runs into
        raise UnsupportedModelError(
            f"{whose} itself cannot run {what}, so there is nothing to compare with: {first_line(error)}"
        ) from error


def check_same(model: CodaModel, inputs: dict[str, Tensor], wanted: Tensor, whose: str) -> None:
    """Compare a converted model's outputs with those of its original, at valid tokens.

    Raises:
        CompileError: they differ, or are no numbers.
    """
    if not torch.isfinite(wanted).all():
        raise CompileError(
            "this model gives NaN or infinite values for a few short sequences: its weights are damaged, or it "
            "overflows; train it again, or save it again"
        )
    seen = answers(model, inputs)
    if seen.shape != wanted.shape:
        off = "of another shape"
    else:
        if seen.dim() == 3:
            valid = model.mask(inputs)
            seen, wanted = seen[valid], wanted[valid]
        # Large models have a few states far larger than the others, whose rounding reaches all of them.
        if torch.allclose(seen, wanted, atol=_CLOSE * max(1.0, float(wanted.abs().max())), rtol=_CLOSE):
            return
        off = f"off by {float((seen - wanted).abs().max()):.2g}"
    raise CompileError(f"the converted model would not compute what {whose} does ({off}): please report it")
