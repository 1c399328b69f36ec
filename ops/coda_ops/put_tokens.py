"""``ai.coda::PutTokens``: scatter gated updates back to the positions they were gathered from.

``PutDifference`` scatters the difference of two sets of tokens; passes alone make it.
"""

from typing import Any

import onnx
import torch
from torch import Tensor

from coda_ops.domain import formal, function, schema
from coda_ops.take_tokens import listed


@torch.library.custom_op("coda::put_tokens", mutates_args=())
def _put(base: Tensor, indices: Tensor, gates: Tensor, update: Tensor) -> Tensor:
    where = indices.unsqueeze(-1).expand_as(update)  # [batch, slots, width]
    gate = gates.unsqueeze(-1).to(update.dtype)
    old = base.gather(1, where)
    return base.scatter(1, where, torch.where(gate > 0, old + gate * update, old))


@_put.register_fake
def _(base: Tensor, indices: Tensor, gates: Tensor, update: Tensor) -> Tensor:
    return torch.empty_like(base)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, gates, update = inputs
    ctx.save_for_backward(indices, gates, update)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    indices, gates, update = ctx.saved_tensors
    at = grad.gather(1, indices.unsqueeze(-1).expand_as(update)).masked_fill(gates.unsqueeze(-1) == 0, 0.0)
    grad_gates = (at * update).sum(-1).to(gates.dtype).masked_fill(gates == 0, 0.0)
    return grad.clone(), None, grad_gates, at * gates.unsqueeze(-1).to(at.dtype)


_put.register_autograd(_backward, setup_context=_save)


def put_tokens(base: Tensor, indices: Tensor, gates: Tensor, update: Tensor) -> Tensor:
    """``base`` with ``gates * update`` added at ``indices``; every other token is untouched, bit for bit.

    Args:
        base: [batch, tokens, width].
        indices: [batch, slots] int64, distinct within an example.
        gates: [batch, slots]; a slot with gate 0 writes nothing, whatever its update holds.
        update: [batch, slots, width].

    Returns:
        [batch, tokens, width], a new tensor.
    """
    result: Tensor = _put(base, indices, gates, update)
    return result


SCHEMA = schema(
    "PutTokens",
    "Add gated updates: out[b, indices[b, j]] = base[b, indices[b, j]] + gates[b, j] * update[b, j]. Indices are "
    "distinct within a row; a slot with gate 0 writes nothing.",
    [
        formal("base", "T", "[batch, tokens, width]"),
        formal("indices", "tensor(int64)", "[batch, slots]"),
        formal("gates", "tensor(float)", "[batch, slots]"),
        formal("update", "T", "[batch, slots, width]"),
    ],
    [formal("out", "T", "[batch, tokens, width]")],
)


DIFFERENCE_SCHEMA = schema(
    "PutDifference",
    "PutTokens whose update is now - before.",
    [
        formal("base", "T", "[batch, tokens, width]"),
        formal("indices", "tensor(int64)", "[batch, slots]"),
        formal("gates", "tensor(float)", "[batch, slots]"),
        formal("now", "T", "[batch, slots, width]"),
        formal("before", "T", "[batch, slots, width]"),
    ],
    [formal("out", "T", "[batch, tokens, width]")],
)

_NEW = """
        none = Constant <value_float: float = 0.0> ()
        gate = Unsqueeze(gates, last)
        open = Greater(gate, none)
        typed = CastLike(gate, update)
        weighted = Mul(typed, update)
        sum = Add(old, weighted)
        new = Where(open, sum, old)"""
_SIGNATURE = "PutTokens (base, indices, gates, update) => (out)"
_BODY = f"""
        last = Constant <value_ints: ints = [-1]> ()
        positions = Unsqueeze(indices, last)
        old = GatherND <batch_dims: int = 1> (base, positions)
        {_NEW}

        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        batch = Shape <start: int = 0, end: int = 1> (indices)
        rows_end = Squeeze(batch)
        rows = Range(zero, rows_end, one)
        rows_axes = Constant <value_ints: ints = [1, 2]> ()
        rows_column = Unsqueeze(rows, rows_axes)
        shape = Shape(positions)
        rows_all = Expand(rows_column, shape)
        where = Concat <axis: int = -1> (rows_all, positions)
        out = ScatterND(base, where, new)"""


def body() -> onnx.FunctionProto:
    """The function body: gather, add, scatter without a reduction, exact because the indices are distinct."""
    return function(_SIGNATURE, _BODY)


def difference_body() -> onnx.FunctionProto:
    """PutDifference's."""
    return function(
        "PutDifference (base, indices, gates, now, before) => (out)",
        f"""
        update = Sub(now, before)
        {_BODY}""",
    )


def openvino_body() -> onnx.FunctionProto:
    """The same for OpenVINO, which copies all of base before it gathers example by example."""
    return function(
        _SIGNATURE,
        f"""{listed("base")}
        last = Constant <value_ints: ints = [-1]> ()
        old = Gather <axis: int = 0> (list, rows)
        {_NEW}
        where = Unsqueeze(rows, last)
        changed = ScatterND(list, where, new)
        shape = Shape(base)
        out = Reshape <allowzero: int = 1> (changed, shape)""",
    )
