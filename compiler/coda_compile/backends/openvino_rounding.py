"""How a target multiplies int8 weights whose activations it rounds itself, in torch.

A file after ``dequantize_weights`` says that weights are rounded and no more. OpenVINO reads it as leave to round
activations too, where its processor multiplies bytes at once (VNNI and its successors): each token by steps of its own,
one for every group of inputs. After ``lower_static_products`` a file gives the step; OpenVINO computes levels from the
range that they span instead, which now and then is another level. Both are measured here with one small product, not
looked up in a list of processors.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from coda_compile.errors import VerificationError
from coda_compile.precision.int8 import Int8Linear
from coda_compile.precision.int8_static import Int8StaticLinear
from coda_ops import int8_linear, int8_static_linear
from coda_targets import Target
from coda_targets.bundle import open_session

_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_CLOSE = 1e-4  # relative; what is not rounded the same way differs by a hundred times that


Product = Callable[[Any, Tensor], Tensor]  # of a module and what it multiplies


def as_written(target: Target) -> Mapping[type, Product]:
    """How each kind of module multiplies in what the passes made for a target, where that is not its own way."""
    return {Int8Linear: _grouped(0)} if _lowers_products(target) else {}


def as_run(target: Target, model: nn.Module) -> Mapping[type, Product]:
    """How each kind of module multiplies when the target runs what the passes made for it here.

    Raises:
        VerificationError: in none of the ways that are known.
    """
    if not _lowers_products(target):
        return {}
    kinds: dict[type, Product] = {}
    if any(isinstance(one, Int8Linear) for one in model.modules()):
        kinds[Int8Linear] = _grouped(group_of(target))
    if any(isinstance(one, Int8StaticLinear) for one in model.modules()) and by_range(target):
        kinds[Int8StaticLinear] = _multiply_by_range
    return kinds


def _lowers_products(target: Target) -> bool:
    return "dequantize_weights" in target.lowering


def _grouped(group: int) -> Product:
    return lambda module, x: multiply(x, module.weight, module.scale, module.bias, group)


def group_of(target: Target) -> int:
    """How many inputs share a step when the target runs here; 0 where it rounds no activations.

    Raises:
        VerificationError: it multiplies in a third way.
    """
    asked = next((int(options[_GROUP]) for _, options in target.providers if _GROUP in options), 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 2 * max(asked, 32)), generator=generator)
    rounded = int8_linear.quantise(torch.randn((x.shape[1], 8), generator=generator))
    model = _one_product(*rounded, 128)
    actual = torch.from_numpy(open_session(model, target, threads=1).run(None, {"x": x.numpy()})[0])
    for group in (0, asked):
        expected = multiply(x, *rounded, torch.zeros(8), group)
        if float((actual - expected).abs().max()) <= _CLOSE * float(expected.abs().max()):
            return group
    raise VerificationError(
        f"target {target.name!r} neither leaves activations as they are nor rounds {asked} of them by one step: "
        "use --precision fp32"
    )


def by_range(target: Target) -> bool:
    """Whether the target rounds by ``levels_by_range`` when it runs here, and not by dividing by the step.

    Raises:
        VerificationError: it rounds in a third way.
    """
    rounding = int8_static_linear.quantisation_of(-3.1, 3.3)
    halves = (torch.arange(255) + 0.5 - rounding.zero_point) * rounding.scale
    near = torch.cat([halves * (1 + i * 2.0**-23) for i in range(-8, 9)]).unsqueeze(0)
    ranged, divided = levels_by_range(near, *rounding), int8_static_linear.quantise(near, *rounding)
    x = near[:, (ranged != divided)[0]]  # the numbers that tell the two apart
    one = int8_static_linear.SignedWeight(torch.eye(x.shape[1]).to(torch.int8), torch.ones(x.shape[1]))
    model = _one_product(*one, 0, rounding)
    actual = torch.from_numpy(open_session(model, target, threads=1).run(None, {"x": x.numpy()})[0])
    found = (actual / rounding.scale).round() + rounding.zero_point
    for levels in (ranged, divided):
        if torch.equal(found, levels[:, (ranged != divided)[0]]):
            return levels is ranged
    raise VerificationError(f"target {target.name!r} rounds activations in a way of its own: use --precision int8")


def levels_by_range(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """The levels of ``int8_static_linear.quantise`` as OpenVINO computes them: from the range, with one rounding."""
    most = torch.tensor(float(int8_static_linear.QUANTISED_MAX))  # a Python number torch would multiply by an inverse
    low, high = step * (0.0 - zero), step * (most - zero)
    scale, shift = most / (high - low), -low * most / (high - low)
    exact = x.double() * scale.double() + shift.double()
    return exact.float().round().clamp(0, int8_static_linear.QUANTISED_MAX)


def _multiply_by_range(module: Int8StaticLinear, x: Tensor) -> Tensor:
    levels = levels_by_range(x, module.x_scale, module.x_zero_point)
    return int8_static_linear.linear(
        levels, *(module.weight, module.scale, module.bias, module.x_scale, module.x_zero_point)
    )


def multiply(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, group: int) -> Tensor:
    """A product with int8 weights as OpenVINO computes it.

    Args:
        x: [..., inputs] float32.
        weight, scale, bias: see ``coda_ops.int8_linear``.
        group: inputs that share a step, the last group as many as are left; 0 to round none, as where there are fewer
            inputs than a group has.

    Returns:
        [..., outputs].
    """
    levels = weight.double() - 128
    inputs = x.shape[-1]
    if not 0 < group <= inputs:
        return _scaled(x.double() @ levels, scale, bias)
    groups = F.pad(x, (0, -inputs % group)).reshape(*x.shape[:-1], -1, group)
    highest = groups.abs().amax(-1, keepdim=True)
    step = torch.where(highest > 0, highest / int8_linear.QUANTISED_MAX, 1.0)
    rounded = (groups * (1 / step)).round()  # as OpenVINO does it: groups / step now and then is another level
    wide = (rounded.double() * step).reshape(*x.shape[:-1], -1)[..., :inputs]
    return _scaled(wide @ levels, scale, bias)


def _scaled(product: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    result: Tensor = product * scale + bias
    return result.float()


@contextmanager
def multiplying(model: nn.Module, kinds: Mapping[type, Product]) -> Iterator[None]:
    """Have every module of some kinds multiply in another way than its own."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> Tensor:
        return kinds[type(module)](module, inputs[0])

    hooks = [module.register_forward_hook(hook) for module in model.modules() if type(module) in kinds]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def _one_product(
    weight: Tensor, scale: Tensor, middle: int, rounding: int8_static_linear.Quantisation | None = None
) -> bytes:
    inputs, outputs = weight.shape
    levels = weight.numpy()
    constants = {"weight": levels, "scale": scale.numpy(), "middle": np.full(outputs, middle, levels.dtype)}
    nodes = []
    if rounding is not None:
        constants |= {"step": rounding.scale.numpy(), "zero": rounding.zero_point.numpy()}
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["levels"]),
            helper.make_node("DequantizeLinear", ["levels", "step", "zero"], ["rounded"]),
        ]
    nodes += [
        helper.make_node("DequantizeLinear", ["weight", "scale", "middle"], ["wide"], axis=1),
        helper.make_node("MatMul", ["x" if rounding is None else "rounded", "wide"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", outputs])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
