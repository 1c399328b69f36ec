"""How a target multiplies int8 weights whose activations it rounds itself, in torch.

A file after ``dequantize_weights`` says that weights are rounded and no more. OpenVINO reads it as leave to round
activations too, where its processor multiplies bytes at once (VNNI and its successors): each token by steps of its own,
one for every group of inputs. That is measured here with one small product, not looked up in a list of processors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from coda_compile.errors import VerificationError
from coda_compile.quantize import Int8Linear
from coda_ops import int8_linear
from coda_targets import Target
from coda_targets.bundle import open_session

_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_CLOSE = 1e-4  # relative; what is not rounded the same way differs by a hundred times that


def rounds_itself(target: Target, model: nn.Module) -> bool:
    """Whether a model has products in int8 that leave activations to the target's runtime."""
    return "dequantize_weights" in target.lowering and any(isinstance(one, Int8Linear) for one in model.modules())


def group_of(target: Target) -> int:
    """How many inputs share a step when the target runs here; 0 where it rounds no activations.

    Raises:
        VerificationError: it multiplies in a third way.
    """
    asked = next((int(options[_GROUP]) for _, options in target.providers if _GROUP in options), 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 2 * max(asked, 32)), generator=generator)
    rounded = int8_linear.quantize(torch.randn((x.shape[1], 8), generator=generator))
    model = _one_product(rounded.weight.numpy(), rounded.scale.numpy())
    actual = torch.from_numpy(open_session(model, target, threads=1).run(None, {"x": x.numpy()})[0])
    for group in (0, asked):
        expected = multiply(x, *rounded, torch.zeros(8), group)
        if float((actual - expected).abs().max()) <= _CLOSE * float(expected.abs().max()):
            return group
    raise VerificationError(
        f"target {target.name!r} neither leaves activations as they are nor rounds {asked} of them by one step: "
        "use --precision fp32"
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
    step = torch.where(highest > 0, highest / int8_linear.LEVELS, 1.0)
    rounded = (groups * (1 / step)).round()  # as OpenVINO does it: groups / step now and then is another level
    wide = (rounded.double() * step).reshape(*x.shape[:-1], -1)[..., :inputs]
    return _scaled(wide @ levels, scale, bias)


def _scaled(product: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    result: Tensor = product * scale + bias
    return result.float()


@contextmanager
def multiplying(model: nn.Module, group: int) -> Iterator[None]:
    """Have every Int8Linear of a model multiply as ``multiply`` does."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> Tensor:
        assert isinstance(module, Int8Linear)
        return multiply(inputs[0], module.weight, module.scale, module.bias, group)

    hooks = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, Int8Linear)]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def _one_product(weight: Any, scale: Any) -> bytes:
    inputs, outputs = weight.shape
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "middle"], ["wide"], axis=1),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    middle = numpy_helper.from_array(np.full(outputs, 128, np.uint8), "middle")
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(scale, "scale"), middle]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", outputs])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
