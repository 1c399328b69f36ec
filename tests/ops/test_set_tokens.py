"""SetTokens against numpy: tokens are replaced bit for bit, others keep theirs; its gradient, ONNX body and kernel."""

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, native
from coda_ops.set_tokens import body, set_tokens

Arrays = tuple[np.ndarray, ...]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")


def oracle(base: np.ndarray, indices: np.ndarray, used: np.ndarray, rows: np.ndarray) -> np.ndarray:
    out = base.copy()
    for b in range(indices.shape[0]):
        for slot in range(indices.shape[1]):
            if used[b, slot]:
                out[b, indices[b, slot]] = rows[b, slot]
    return out


def drawn(
    seed: int, batch: int = 3, tokens: int = 8, slots: int = 4, width: int = 5, dtype: Any = np.float32
) -> Arrays:
    """base, indices, used, rows; each text uses so many of its slots, from none to all."""
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.permutation(tokens)[:slots].astype(np.int64) for _ in range(batch)])
    used = np.arange(slots) < rng.integers(0, slots + 1, size=(batch, 1))
    base = rng.normal(size=(batch, tokens, width)).astype(dtype)
    return base, indices, used, rng.normal(size=(batch, slots, width)).astype(dtype)


def in_torch(*arrays: np.ndarray) -> np.ndarray:
    return set_tokens(*map(torch.tensor, arrays)).numpy()


def in_onnx(*arrays: np.ndarray, library: Any = None, threads: int = 1) -> np.ndarray:
    made = body()
    inputs = dict(zip(made.input, arrays, strict=True))
    found: np.ndarray = run_node(made, inputs, library=library, threads=threads)[0]
    return found


def in_kernel(*arrays: np.ndarray) -> np.ndarray:
    return in_onnx(*arrays, library=native.library())


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 9), st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_tokens_are_replaced_bit_for_bit(seed: int, batch: int, tokens: int, data: st.DataObject):
    arrays = drawn(seed, batch, tokens, data.draw(st.integers(0, tokens)), 3, np.float64)
    np.testing.assert_array_equal(in_torch(*arrays), oracle(*arrays))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("run", [in_torch, in_onnx, in_kernel])
def test_an_unused_slot_writes_nothing(run: Any, poison: float):
    base, indices, used, rows = drawn(0)
    base[:, 0, 0] = -0.0
    used[:, ::2] = False
    rows[~used] = poison
    assert run(base, indices, used, rows).tobytes() == oracle(base, indices, used, rows).tobytes()


def test_the_base_itself_is_left_alone():
    base, indices, used, rows = map(torch.tensor, drawn(1))
    before = base.clone()
    set_tokens(base, indices, used, rows)
    assert torch.equal(base, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_is_kept(dtype: torch.dtype):
    base, indices, used, rows = map(torch.tensor, drawn(2))
    out = set_tokens(base.to(dtype), indices, used, rows.to(dtype))
    assert out.dtype == dtype


def test_gradients_in_float64():
    base, indices, used, rows = map(torch.tensor, drawn(3, dtype=np.float64))
    used[:, 1] = True
    leaves = [t.requires_grad_() for t in (base, rows)]
    assert torch.autograd.gradcheck(lambda b, r: set_tokens(b, indices, used, r), leaves)


def test_gradients_are_those_of_a_mask():
    """out = base · (1 - M) + Pᵀ · rows, M and P made of the slots in use."""
    base, indices, used, rows = map(torch.tensor, drawn(4, dtype=np.float64))
    place = torch.nn.functional.one_hot(indices, base.shape[1]) * used.unsqueeze(-1)  # [batch, slots, tokens]
    place = place.double()
    weight = torch.randn(base.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = []
    for function in (
        lambda b, r: set_tokens(b, indices, used, r),
        lambda b, r: b * (1 - place.sum(1).unsqueeze(-1)) + place.transpose(1, 2) @ r,
    ):
        leaves = [t.clone().requires_grad_() for t in (base, rows)]
        (function(*leaves) * weight).sum().backward()
        made.append([t.grad for t in leaves])
    for found, wanted in zip(*made, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_nothing_flows_back_from_an_unused_slot():
    base, indices, used, rows = map(torch.tensor, drawn(5))
    used[:, ::2] = False
    rows[~used] = math.nan
    rows.requires_grad_()
    set_tokens(base, indices, used, rows).sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, used.unsqueeze(-1).expand_as(rows).float())


def test_opcheck():
    base, indices, used, rows = map(torch.tensor, drawn(6))
    torch.library.opcheck(
        torch.ops.coda.set_tokens.default, (base.requires_grad_(), indices, used, rows.requires_grad_())
    )


def test_the_schema_is_registered():
    assert onnx.defs.has("SetTokens", DOMAIN)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("batch", "tokens", "slots"), [(1, 1, 1), (3, 8, 4), (2, 5, 5), (2, 3, 0), (2, 0, 0)])
def test_the_onnx_body_is_the_torch_operator(batch: int, tokens: int, slots: int, dtype: Any):
    arrays = drawn(7, batch, tokens, slots, dtype=dtype)
    out = in_onnx(*arrays)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, in_torch(*arrays))
    np.testing.assert_array_equal(out, oracle(*arrays))


@needs_kernels
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_kernel_is_the_oracle(dtype: Any, seed: int, batch: int, tokens: int, width: int, data: st.DataObject):
    arrays = drawn(seed, batch, tokens, data.draw(st.integers(0, tokens)), width, dtype)
    assert in_kernel(*arrays).tobytes() == oracle(*arrays).tobytes()


@needs_kernels
def test_large_texts_are_shared_among_threads():
    arrays = drawn(8, 2, 500, 125, 384)
    assert in_onnx(*arrays, library=CPU_KERNELS, threads=4).tobytes() == oracle(*arrays).tobytes()


@needs_kernels
def test_a_base_that_others_read_is_left_alone():
    """onnxruntime may hand the base over to be written into; not when it is read again."""
    text = f"""<ir_version: 10, opset_import: ["" : 18, "{DOMAIN}" : 1]>
    agraph (float[B, N, D] x, int64[B, K] indices, bool[B, K] used, float[B, K, D] rows)
      => (float[B, N, D] out, float[B, N, D] kept)
    {{
      base = Neg(x)
      out = {DOMAIN}.SetTokens(base, indices, used, rows)
      kept = Abs(base)
    }}"""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(CPU_KERNELS))
    content = onnx.parser.parse_model(text).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    base, indices, used, rows = drawn(9)
    out, kept = session.run(None, {"x": -base, "indices": indices, "used": used, "rows": rows})
    np.testing.assert_array_equal(kept, np.abs(base))
    np.testing.assert_array_equal(out, oracle(base, indices, used, rows))


@needs_kernels
def test_what_does_not_fit_is_refused():
    base, indices, used, rows = drawn(10)
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    for wrong in (
        (base, indices, used[:, :3], rows),
        (base, indices, used, rows[..., :4]),
        (base, indices[:2], used, rows),
    ):
        with pytest.raises(fails, match=r"SetTokens: base must be .* indices and used"):
            in_kernel(*wrong)
    for bad in (-1, 8, 2**40):
        indices[1, 2] = bad
        with pytest.raises(fails, match="SetTokens: an index lies outside of the sequence"):
            in_kernel(base, indices, used, rows)
