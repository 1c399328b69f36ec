"""``ai.coda::SetTokens``: put tokens in the places of others."""

from typing import Any

import onnx
import torch
from torch import Tensor

from coda_ops.domain import formal, function, schema
from coda_ops.put_tokens import gathered, scattered


@torch.library.custom_op("coda::set_tokens", mutates_args=())
def _set(base: Tensor, indices: Tensor, used: Tensor, rows: Tensor) -> Tensor:
    where = indices.unsqueeze(-1).expand_as(rows)  # [batch, slots, width]
    return base.scatter(1, where, torch.where(used.unsqueeze(-1), rows, base.gather(1, where)))


@_set.register_fake
def _(base: Tensor, indices: Tensor, used: Tensor, rows: Tensor) -> Tensor:
    return torch.empty_like(base)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, used, _ = inputs
    ctx.save_for_backward(indices, used)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor]:
    indices, used = ctx.saved_tensors
    where = indices.unsqueeze(-1).expand(-1, -1, grad.shape[-1])
    at, written = grad.gather(1, where), used.unsqueeze(-1)
    return grad.scatter(1, where, at.masked_fill(written, 0.0)), None, None, at.masked_fill(~written, 0.0)


_set.register_autograd(_backward, setup_context=_save)


def set_tokens(base: Tensor, indices: Tensor, used: Tensor, rows: Tensor) -> Tensor:
    """``base`` with ``rows`` in the places of its tokens at ``indices``, bit for bit.

    Args:
        base: [batch, tokens, width].
        indices: [batch, slots] int64, distinct within an example.
        used: [batch, slots] bool; a slot that is not used writes nothing.
        rows: [batch, slots, width].

    Returns:
        [batch, tokens, width], a new tensor.
    """
    result: Tensor = _set(base, indices, used, rows)
    return result


SCHEMA = schema(
    "SetTokens",
    "out[b, indices[b, j]] = rows[b, j] where used[b, j], and base elsewhere. Indices are distinct within a row.",
    [
        formal("base", "T", "[batch, tokens, width]"),
        formal("indices", "tensor(int64)", "[batch, slots]"),
        formal("used", "tensor(bool)", "[batch, slots]"),
        formal("rows", "T", "[batch, slots, width]"),
    ],
    [formal("out", "T", "[batch, tokens, width]")],
)


def body() -> onnx.FunctionProto:
    """The function body: gather, choose, and scatter without a reduction."""
    return function(
        "SetTokens (base, indices, used, rows) => (out)",
        replaced("base", "rows", "out"),
    )


def replaced(base: str, rows: str, out: str) -> str:
    """Statements of a body: ``base`` with ``rows`` in the places of its tokens at ``indices`` that are ``used``."""
    return f"""{gathered(base)}
        written = Unsqueeze(used, last)
        new = Where(written, {rows}, old)
        {scattered(base, out)}"""
