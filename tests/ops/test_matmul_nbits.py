"""MatMulNBits: how weights are packed, and the torch form against a float64 oracle and onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from coda_ops import RUNTIME_DOMAIN
from coda_ops.matmul_nbits import BITS, BLOCK_SIZE, dequantise, matmul_nbits, quantise

INPUTS = st.sampled_from([1, 2, 7, 31, 32, 33, 64, 100])  # a block, parts of one, and a short last one


def oracle(packed: np.ndarray, scales: np.ndarray, inputs: int) -> np.ndarray:
    """A number at a time, in float64."""
    outputs, blocks, _ = packed.shape
    dense = np.zeros((inputs, outputs))
    for i in range(inputs):
        block, place = divmod(i, BLOCK_SIZE)
        for j in range(outputs):
            byte = int(packed[j, block, place // 2])
            quantised = byte // 16 if place % 2 else byte % 16
            dense[i, j] = (quantised - 8) * float(scales[j * blocks + block])
    return dense


def drawn(seed: int, rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    packed, scales = quantise(torch.tensor(rng.normal(size=(inputs, outputs)) * rng.choice([1e-3, 1, 9], size=outputs)))
    return rng.normal(size=(rows, inputs)).astype(np.float32), packed.numpy(), scales.numpy()


def run(x: np.ndarray, packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What onnxruntime gives for weights that are constants."""
    sizes = {"K": x.shape[-1], "N": packed.shape[0], "bits": BITS, "block_size": BLOCK_SIZE, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", "packed", "scales"], ["y"], domain=RUNTIME_DOMAIN, **sizes)
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", x.shape[-1]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", packed.shape[0]])],
        [numpy_helper.from_array(packed, "packed"), numpy_helper.from_array(scales, "scales")],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: np.ndarray = session.run(None, {"x": x})[0]
    return y


@given(st.integers(0, 2**31), st.integers(1, 5), INPUTS, st.integers(1, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_torch_and_onnxruntime_are_the_formula(seed: int, rows: int, inputs: int, outputs: int):
    x, packed, scales = drawn(seed, rows, inputs, outputs)
    dense = oracle(packed, scales, inputs)
    np.testing.assert_allclose(dequantise(torch.tensor(packed), torch.tensor(scales), inputs), dense, rtol=1e-6)
    wanted = x.astype(np.float64) @ dense
    limit = 4e-6 * np.abs(x).max() * np.abs(dense).sum(0).max()
    for got in (matmul_nbits(*map(torch.tensor, (x, packed, scales))).numpy(), run(x, packed, scales)):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=limit)


def test_a_large_layer_is_as_exact_as_float32():
    x, packed, scales = drawn(0, 130, 1536, 384)
    wanted = x.astype(np.float64) @ dequantise(torch.tensor(packed), torch.tensor(scales), 1536).numpy()
    assert np.abs(run(x, packed, scales) - wanted).max() < 4e-6 * np.abs(wanted).max()


def test_in_float64_it_is_the_oracle():
    x, packed, scales = drawn(1, 3, 40, 5)
    wide = matmul_nbits(torch.tensor(x).double(), torch.tensor(packed), torch.tensor(scales))
    assert wide.dtype == torch.float64
    np.testing.assert_allclose(wide, x.astype(np.float64) @ oracle(packed, scales, 40), rtol=1e-6)


@given(st.integers(0, 2**31), INPUTS, st.integers(1, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_weights_are_off_by_half_a_scale_at_most(seed: int, inputs: int, outputs: int):
    weight = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))
    weight[:, 0] = 0
    packed, scales = quantise(weight)
    blocks = -(-inputs // BLOCK_SIZE)
    assert (packed.dtype, packed.shape) == (torch.uint8, (outputs, blocks, BLOCK_SIZE // 2))
    back = dequantise(packed, scales, inputs)
    each = scales.reshape(outputs, blocks).repeat_interleave(BLOCK_SIZE, 1)[:, :inputs].T
    assert ((back - weight).abs() <= each * 0.5001).all()
    assert (back[:, 0] == 0).all()


def test_opcheck_and_schema():
    x, packed, scales = map(torch.tensor, drawn(0, 3, 33, 4))
    arguments = (x, packed, scales, 33, 4, BITS, BLOCK_SIZE, 1)
    torch.library.opcheck(torch.ops.coda.matmul_nbits.default, arguments)
    assert onnx.defs.has("MatMulNBits", RUNTIME_DOMAIN)


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_any_number_of_leading_axes(lead: tuple[int, ...]):
    _, packed, scales = map(torch.tensor, drawn(0, 1, 32, 4))
    assert matmul_nbits(torch.zeros(*lead, 32), packed, scales).shape == (*lead, 4)
