"""``ai.coda::PutTokens``: scatter gated updates back to the positions they were gathered from.

``PutDifference`` scatters the difference of two sets of tokens, and ``BlendTokens`` that of tokens and what is there;
passes alone make them.
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


_SLOTS = [
    formal("base", "T", "[batch, tokens, width]"),
    formal("indices", "tensor(int64)", "[batch, slots]"),
    formal("gates", "tensor(float)", "[batch, slots]"),
]
_NOW = formal("now", "T", "[batch, slots, width]")
_OUTPUTS = [formal("out", "T", "[batch, tokens, width]")]
SCHEMA = schema(
    "PutTokens",
    "Add gated updates: out[b, indices[b, j]] = base[b, indices[b, j]] + gates[b, j] * update[b, j]. Indices are "
    "distinct within a row; a slot with gate 0 writes nothing.",
    [*_SLOTS, formal("update", "T", "[batch, slots, width]")],
    _OUTPUTS,
)
DIFFERENCE_SCHEMA = schema(
    "PutDifference",
    "PutTokens whose update is now - before.",
    [*_SLOTS, _NOW, formal("before", "T", "[batch, slots, width]")],
    _OUTPUTS,
)
BLEND_SCHEMA = schema(
    "BlendTokens", "PutTokens whose update is now - base[b, indices[b, j]].", [*_SLOTS, _NOW], _OUTPUTS
)


def gathered(base: str) -> str:
    """Statements of a body: ``old``, the tokens of ``base`` at ``indices``."""
    return f"""
        last = Constant <value = int64[1] {{-1}}> ()
        positions = Unsqueeze(indices, last)
        old = GatherND <batch_dims: int = 1> ({base}, positions)"""


def scattered(base: str, out: str) -> str:
    """Statements behind those of ``gathered``: ``new`` in the places of ``old``; exact, as the indices are distinct."""
    return f"""
        zero = Constant <value = int64 {{0}}> ()
        one = Constant <value = int64 {{1}}> ()
        batch = Shape <start: int = 0, end: int = 1> (indices)
        count = Squeeze(batch)
        examples = Range(zero, count, one)
        axes = Constant <value = int64[2] {{1, 2}}> ()
        column = Unsqueeze(examples, axes)
        shape = Shape(positions)
        each = Expand(column, shape)
        where = Concat <axis: int = -1> (each, positions)
        {out} = ScatterND({base}, where, new)"""


_NEW = """
        none = Constant <value = float {0.0}> ()
        gate = Unsqueeze(gates, last)
        open = Greater(gate, none)
        typed = CastLike(gate, update)
        weighted = Mul(typed, update)
        sum = Add(old, weighted)
        new = Where(open, sum, old)"""
_SIGNATURE = "PutTokens (base, indices, gates, update) => (out)"
_OLD = gathered("base")
_SCATTER = f"""
        {_NEW}
        {scattered("base", "out")}"""


def body() -> onnx.FunctionProto:
    """The function body: gather, add, scatter without a reduction, exact because the indices are distinct."""
    return function(_SIGNATURE, _OLD + _SCATTER)


def difference_body() -> onnx.FunctionProto:
    """PutDifference's."""
    return function(
        "PutDifference (base, indices, gates, now, before) => (out)",
        f"""
        update = Sub(now, before)
        {_OLD}{_SCATTER}""",
    )


def blend_body() -> onnx.FunctionProto:
    """BlendTokens'."""
    return function(
        "BlendTokens (base, indices, gates, now) => (out)",
        f"""{_OLD}
        update = Sub(now, old)
        {_SCATTER}""",
    )


def openvino_body() -> onnx.FunctionProto:
    """The same for OpenVINO, which copies all of base before it gathers example by example."""
    return function(
        _SIGNATURE,
        f"""{listed("base")}
        last = Constant <value = int64[1] {{-1}}> ()
        old = Gather <axis: int = 0> (list, rows)
        {_NEW}
        where = Unsqueeze(rows, last)
        changed = ScatterND(list, where, new)
        shape = Shape(base)
        out = Reshape <allowzero: int = 1> (changed, shape)""",
    )
