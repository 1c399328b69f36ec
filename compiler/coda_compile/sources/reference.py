"""What another library's own model computes, to hold a converted one against."""

from typing import Any

import torch
from torch import Tensor

from coda_compile.errors import CompileError
from coda_models.model import CodaModel

_CLOSE = 1e-4  # weights are merged in float32


def few_tokens(config: Any) -> dict[str, Tensor]:
    """Two short texts of equal length, since the libraries do not agree with themselves on padding everywhere."""
    ids = torch.arange(22).reshape(2, 11) % config.vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def answers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits or, without a head, states."""
    with torch.inference_mode():
        output = model(**inputs)
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def check_same(model: CodaModel, inputs: dict[str, Tensor], wanted: Tensor, whose: str) -> None:
    """Compare a converted model's answers with those of its original.

    Raises:
        CompileError: they differ.
    """
    seen = answers(model, inputs)
    if seen.shape != wanted.shape or not torch.allclose(seen, wanted, atol=_CLOSE, rtol=_CLOSE):
        off = f"off by {float((seen - wanted).abs().max()):.2g}" if seen.shape == wanted.shape else "of another shape"
        raise CompileError(f"the converted model would not compute what {whose} does ({off}): please report it")
