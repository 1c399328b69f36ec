"""``ai.coda::TakeTokens``: gather the routed tokens of every sequence."""

from typing import Any

import onnx
import torch
from torch import Tensor

from coda_ops.domain import formal, function, schema


def _spread(indices: Tensor, width: int) -> Tensor:
    return indices.unsqueeze(-1).expand(-1, -1, width)  # [batch, slots, width]


@torch.library.custom_op("coda::take_tokens", mutates_args=())
def _take(x: Tensor, indices: Tensor) -> Tensor:
    return x.gather(1, _spread(indices, x.shape[-1]))


@_take.register_fake
def _(x: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty((*indices.shape, x.shape[-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, indices = inputs
    ctx.save_for_backward(indices)
    ctx.shape = x.shape


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    return grad.new_zeros(ctx.shape).scatter_add(1, _spread(indices, grad.shape[-1]), grad), None


_take.register_autograd(_backward, setup_context=_save)


def take_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """``x[b, indices[b]]`` for every example b.

    Args:
        x: [batch, tokens, width].
        indices: [batch, slots] int64 positions.

    Returns:
        [batch, slots, width].
    """
    result: Tensor = _take(x, indices)
    return result


SCHEMA = schema(
    "TakeTokens",
    "Gather tokens: taken[b, j] = x[b, indices[b, j]].",
    [formal("x", "T", "[batch, tokens, width]"), formal("indices", "tensor(int64)", "[batch, slots]")],
    [formal("taken", "T", "[batch, slots, width]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return function(
        "TakeTokens (x, indices) => (taken)",
        """
        last = Constant <value = int64[1] {-1}> ()
        positions = Unsqueeze(indices, last)
        taken = GatherND <batch_dims: int = 1> (x, positions)""",
    )


def listed(tokens: str) -> str:
    """Statements of a body: ``list``, [batch * tokens, width], of a [batch, tokens, width], and ``rows``, the indices
    in it."""
    return f"""
        zero = Constant <value = int64 {{0}}> ()
        one = Constant <value = int64 {{1}}> ()
        whole = Constant <value = int64[1] {{-1}}> ()
        width = Shape <start: int = 2, end: int = 3> ({tokens})
        list_shape = Concat <axis: int = 0> (whole, width)
        list = Reshape({tokens}, list_shape)
        length = Shape <start: int = 1, end: int = 2> ({tokens})
        batch = Shape <start: int = 0, end: int = 1> ({tokens})
        examples = Squeeze(batch)
        example = Range(zero, examples, one)
        column = Unsqueeze(example, one)
        first = Mul(column, length)
        rows = Add(indices, first)"""


def openvino_body() -> onnx.FunctionProto:
    """The same for OpenVINO, which copies all of x before it gathers example by example."""
    return function(
        "TakeTokens (x, indices) => (taken)",
        f"""{listed("x")}
        taken = Gather <axis: int = 0> (list, rows)""",
    )
