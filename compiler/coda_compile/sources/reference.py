"""What another library's own model computes, to hold a converted one against."""

from typing import Any

import torch
from torch import Tensor

from coda_compile.errors import CompileError
from coda_models.errors import UnsupportedModelError
from coda_models.model import CodaModel
from coda_ops.errors import first_line

_CLOSE = 1e-4  # weights are merged in float32
_TOKENS = 11


def few_tokens(config: Any, *, padded: bool = False, types: bool = True) -> dict[str, Tensor]:
    """Two short texts, of two kinds of tokens where the model tells those apart.

    Args:
        padded: the second one is shorter; the libraries of adapters do not agree with themselves on padding everywhere.
        types: give token types.
    """
    positions = int(config.max_position_embeddings) - max(int(config.pad_token_id or 0), 1) - 1
    tokens = max(1, min(_TOKENS, positions))
    ids = torch.arange(2 * tokens).reshape(2, tokens) % config.vocab_size
    mask = torch.ones_like(ids)
    if padded and tokens > 1:
        mask[1, tokens - tokens // 3 - 1 :] = 0
        ids = ids.where(mask.bool(), int(config.pad_token_id or 0))
    inputs = {"input_ids": ids, "attention_mask": mask}
    rows = getattr(config, "type_vocab_size", 1)  # DistilBERT and MPNet have none
    if types and rows > 1:
        inputs["token_type_ids"] = torch.arange(tokens).expand(2, -1) * 2 // tokens * mask
    return inputs


def answers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits or, without a head, states."""
    plain = {} if isinstance(model, CodaModel) else {"return_dict": True}  # some configurations ask for tuples
    with torch.inference_mode():
        output = model(**inputs, **plain)
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def wanted_answers(model: Any, inputs: dict[str, Tensor], whose: str, what: str = "this model") -> Tensor:
    """The answers of a library's own model.

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
    """Compare a converted model's answers with those of its original, where there are tokens.

    Raises:
        CompileError: they differ.
    """
    seen = answers(model, inputs)
    if seen.shape != wanted.shape:
        off = "of another shape"
    else:
        if seen.dim() == 3:
            valid = inputs["attention_mask"].bool()
            seen, wanted = seen[valid], wanted[valid]
        # Large models have a few states far larger than the others, whose rounding reaches all of them.
        if torch.allclose(seen, wanted, atol=_CLOSE * max(1.0, float(wanted.abs().max())), rtol=_CLOSE):
            return
        off = f"off by {float((seen - wanted).abs().max()):.2g}"
    raise CompileError(f"the converted model would not compute what {whose} does ({off}): please report it")
