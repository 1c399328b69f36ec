"""How OpenVINO quantises the activations of quantised linear modules, in torch.

A file after ``dequantize_weights`` says that weights are quantised and no more. OpenVINO reads it as leave to quantise
activations too, where its processor multiplies bytes at once (VNNI and its successors): each token by scales of its
own, one for every group of inputs. After ``lower_static_linears`` a file gives scale and zero point; OpenVINO
quantises by the range that they span instead, which now and then rounds to another integer. Both are measured here with
one small matrix product, not looked up in a list of processors.
"""

from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from coda_compile.backends import Linear
from coda_compile.errors import VerificationError
from coda_compile.precision.int8_static import Int8StaticLinear
from coda_ops import int8_linear, int8_static_linear
from coda_targets import Runtime
from coda_targets.runtimes.session import open_session

_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_CLOSE = 1e-4  # relative; what is not quantised the same way differs by a hundred times that


def grouped(group: int) -> Linear:
    """``linear_by_group`` of an Int8Linear."""

    def linear(module: Any, x: Tensor) -> Tensor:
        return linear_by_group(x, module.weight, module.scale, module.bias, group)

    return linear


def group_of(runtime: Runtime) -> int:
    """How many inputs share a scale when the runtime runs here; 0 where it quantises no activations.

    Raises:
        VerificationError: it does neither.
    """
    asked = int(runtime.options.get(_GROUP, 0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 2 * max(asked, 32)), generator=generator)
    weights = int8_linear.quantise(torch.randn((x.shape[1], 8), generator=generator))
    model = _one_linear(*weights, 128)
    actual = torch.from_numpy(open_session(model, runtime, threads=1).run(None, {"x": x.numpy()})[0])
    for group in (0, asked):
        expected = linear_by_group(x, *weights, torch.zeros(8), group)
        if float((actual - expected).abs().max()) <= _CLOSE * float(expected.abs().max()):
            return group
    raise VerificationError(
        f"target {runtime.name!r} neither leaves activations as they are nor quantises {asked} of them by one scale: "
        "use --precision fp32"
    )


def by_range(runtime: Runtime) -> bool:
    """Whether the runtime quantises by ``quantise_by_range`` when it runs here, and not by dividing by the scale.

    Raises:
        VerificationError: it does neither.
    """
    scale, zero_point = activation = int8_static_linear.quantisation_of(-3.1, 3.3)
    halves = (torch.arange(255) + 0.5 - zero_point) * scale
    near = torch.cat([halves * (1 + i * 2.0**-23) for i in range(-8, 9)]).unsqueeze(0)
    ranged, divided = quantise_by_range(near, *activation), int8_static_linear.quantise(near, *activation)
    differ = (ranged != divided)[0]
    x = near[:, differ]
    identity = int8_static_linear.SignedWeight(torch.eye(x.shape[1]).to(torch.int8), torch.ones(x.shape[1]))
    model = _one_linear(*identity, 0, activation)
    actual = torch.from_numpy(open_session(model, runtime, threads=1).run(None, {"x": x.numpy()})[0])
    found = (actual / scale).round() + zero_point
    for quantised in (ranged, divided):
        if torch.equal(found, quantised[:, differ]):
            return quantised is ranged
    raise VerificationError(f"target {runtime.name!r} quantises activations in a way of its own: use --precision int8")


def quantise_by_range(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Activations as integers from 0 to 255, as OpenVINO computes them: from the range, rounded once.

    Args:
        x: of any shape, float32.
        scale, zero_point: []; see ``coda_ops.int8_static_linear``.

    Returns:
        Of x's shape and type.
    """
    most = torch.tensor(float(int8_static_linear.QUANTISED_MAX))  # a Python number torch would multiply by an inverse
    low, high = scale * (0.0 - zero_point), scale * (most - zero_point)
    factor, shift = most / (high - low), -low * most / (high - low)
    exact = x.double() * factor.double() + shift.double()
    return exact.float().round().clamp(0, int8_static_linear.QUANTISED_MAX)


def linear_by_range(module: Int8StaticLinear, x: Tensor) -> Tensor:
    """An Int8StaticLinear with activations quantised by ``quantise_by_range``."""
    quantised = quantise_by_range(x, module.x_scale, module.x_zero_point)
    return int8_static_linear.linear(
        quantised, module.weight, module.scale, module.bias, module.x_scale, module.x_zero_point
    )


def linear_by_group(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, group: int) -> Tensor:
    """A linear layer with int8 weights as OpenVINO computes it.

    Args:
        x: [..., inputs] float32.
        weight, scale, bias: see ``coda_ops.int8_linear``.
        group: inputs that share a scale, the last group as many as are left; 0 to quantise none, as where there are
            fewer inputs than a group has.

    Returns:
        [..., outputs].
    """
    integers = weight.double() - 128
    inputs = x.shape[-1]
    if not 0 < group <= inputs:
        return _scaled(x.double() @ integers, scale, bias)
    groups = F.pad(x, (0, -inputs % group)).reshape(*x.shape[:-1], -1, group)  # [..., groups, group]
    highest = groups.abs().amax(-1, keepdim=True)
    shared = torch.where(highest > 0, highest / int8_linear.QUANTISED_MAX, 1.0)  # [..., groups, 1]
    quantised = (groups * (1 / shared)).round()  # as OpenVINO does it: groups / shared now and then is another integer
    dequantised = (quantised.double() * shared).reshape(*x.shape[:-1], -1)[..., :inputs]
    return _scaled(dequantised @ integers, scale, bias)


def _scaled(product: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    result: Tensor = product * scale + bias
    return result.float()


def _one_linear(
    weight: Tensor, scale: Tensor, zero_point: int, activation: int8_static_linear.Quantisation | None = None
) -> bytes:
    """A model of one linear layer, ``x`` [tokens, inputs] to ``y`` [tokens, outputs], in the form that passes write.

    Args:
        activation: scale and zero point of ``x``, where it is quantised in the file.
    """
    inputs, outputs = weight.shape
    integers = weight.numpy()
    constants = {"weight": integers, "scale": scale.numpy(), "zero_point": np.full(outputs, zero_point, integers.dtype)}
    nodes = []
    if activation is not None:
        constants |= {"x_scale": activation.scale.numpy(), "x_zero_point": activation.zero_point.numpy()}
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero_point"], ["quantised"]),
            helper.make_node("DequantizeLinear", ["quantised", "x_scale", "x_zero_point"], ["dequantised"]),
        ]
    nodes += [
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero_point"], ["wide"], axis=1),
        helper.make_node("MatMul", ["x" if activation is None else "dequantised", "wide"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", outputs])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
