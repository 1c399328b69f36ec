"""PutTokens against numpy: gated tokens change, no other bit does; its gradient and its ONNX body."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, native
from coda_ops.put_tokens import blend_body, body, difference_body, openvino_body, put_tokens

LIBRARIES = [None] if native.library() is None else [None, CPU_KERNELS]


def oracle(base, indices, gates, update):
    out = base.astype(np.float64)
    for b in range(indices.shape[0]):
        for slot in range(indices.shape[1]):
            if gates[b, slot] > 0:
                out[b, indices[b, slot]] += np.float64(gates[b, slot]) * update[b, slot]
    return out


def drawn(seed, batch=3, tokens=8, slots=4, width=5, dtype=np.float32):
    """base, indices, gates, update; every other gate 0."""
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.permutation(tokens)[:slots].astype(np.int64) for _ in range(batch)])
    gates = rng.random((batch, slots)).astype(dtype)
    gates[:, ::2] = 0
    base = rng.normal(size=(batch, tokens, width)).astype(dtype)
    return base, indices, gates, rng.normal(size=(batch, slots, width)).astype(dtype)


def put(*arrays):
    return put_tokens(*map(torch.tensor, arrays)).numpy()


def in_onnx(make, arrays, library=None, threads=1):
    return run_node(make(), dict(zip(make().input, arrays, strict=True)), library=library, threads=threads)[0]


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 9), st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_gated_updates_are_added(seed, batch, tokens, data):
    slots = data.draw(st.integers(0, tokens))
    arrays = drawn(seed, batch, tokens, slots, 3, np.float64)
    np.testing.assert_allclose(put(*arrays), oracle(*arrays), rtol=0, atol=1e-14)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("run", [put, lambda *a: in_onnx(body, a), lambda *a: in_onnx(openvino_body, a)])
def test_gate_zero_writes_nothing_and_untouched_tokens_keep_every_bit(run, poison):
    base, indices, gates, update = drawn(0)
    base[:, 0, 0] = -0.0
    update[gates == 0] = poison
    out = run(base, indices, gates, update)
    for b in range(len(base)):
        written = {int(i) for i, gate in zip(indices[b], gates[b], strict=True) if gate > 0}
        assert written
        for token in set(range(base.shape[1])) - written:
            assert out[b, token].tobytes() == base[b, token].tobytes()
        for token in written:
            assert (out[b, token] != base[b, token]).any()


def test_the_base_itself_is_left_alone():
    base, indices, gates, update = map(torch.tensor, drawn(1))
    before = base.clone()
    put_tokens(base, indices, gates, update)
    assert torch.equal(base, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_under_float32_gates(dtype):
    base, indices, gates, update = map(torch.tensor, drawn(2))
    out = put_tokens(base.to(dtype), indices, gates, update.to(dtype))
    assert out.dtype == dtype
    np.testing.assert_allclose(out.float().numpy(), oracle(*drawn(2)), rtol=0.02, atol=0.03)


def test_gradients_in_float64():
    base, indices, gates, update = map(torch.tensor, drawn(3, dtype=np.float64))
    leaves = [t.requires_grad_() for t in (base, gates.clamp(min=0.1), update)]
    assert torch.autograd.gradcheck(lambda b, g, u: put_tokens(b, indices, g, u), leaves)


def test_nothing_flows_back_through_gate_zero():
    base, indices, gates, update = map(torch.tensor, drawn(4))
    update[gates == 0] = math.nan
    gates.requires_grad_()
    update.requires_grad_()
    put_tokens(base, indices, gates, update).sum().backward()
    closed = gates.detach() == 0
    assert (gates.grad[closed] == 0).all()
    assert (update.grad[closed] == 0).all()
    assert (gates.grad[~closed] != 0).all()


def test_opcheck():
    base, indices, gates, update = map(torch.tensor, drawn(5))
    leaves = (base.requires_grad_(), indices, gates.requires_grad_(), update.requires_grad_())
    torch.library.opcheck(torch.ops.coda.put_tokens.default, leaves)


def test_the_schemas_are_registered():
    assert all(onnx.defs.has(name, DOMAIN) for name in ("PutTokens", "PutDifference", "BlendTokens"))


@pytest.mark.parametrize("make", [body, openvino_body])
@pytest.mark.parametrize(("batch", "tokens", "slots"), [(1, 1, 1), (3, 8, 4), (2, 5, 5), (2, 3, 0), (2, 0, 0)])
def test_the_onnx_body_is_the_torch_operator(batch, tokens, slots, make):
    arrays = drawn(6, batch, tokens, slots)
    arrays[2][:] = np.random.default_rng(7).random(arrays[2].shape)
    out = in_onnx(make, arrays)
    np.testing.assert_allclose(out, put(*arrays), rtol=0, atol=1e-6)
    np.testing.assert_allclose(out, oracle(*arrays), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "tokens", "slots"), [(1, 1, 1), (3, 8, 4), (2, 3, 0)])
def test_a_difference_is_put_as_an_update(batch, tokens, slots):
    base, indices, gates, update = drawn(8, batch, tokens, slots)
    before = np.random.default_rng(9).normal(size=update.shape).astype(np.float32)
    out = in_onnx(difference_body, (base, indices, gates, update, before))
    np.testing.assert_array_equal(out, in_onnx(body, (base, indices, gates, update - before)))


def blended(base, indices, gates, now):
    return oracle(base, indices, gates, now - np.take_along_axis(base, indices[..., None], 1).astype(np.float64))


@pytest.mark.parametrize("library", LIBRARIES)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_tokens_are_blended_with_what_is_there(library, seed, batch, tokens, width, data):
    arrays = drawn(seed, batch, tokens, data.draw(st.integers(0, tokens)), width)
    np.testing.assert_allclose(in_onnx(blend_body, arrays, library), blended(*arrays), rtol=0, atol=2e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_blend_is_the_difference_from_what_is_there(library):
    """Bit for bit, as kernels compute both alike."""
    base, indices, gates, now = drawn(9, 2, 40, 17, 33)
    before = np.take_along_axis(base, indices[..., None], 1)
    out = in_onnx(blend_body, (base, indices, gates, now), library)
    np.testing.assert_array_equal(out, in_onnx(difference_body, (base, indices, gates, now, before), library))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gates_of_a_blend(library, dtype):
    """0 writes nothing, whatever the slot holds; 1 leaves the new token; what is tied stays."""
    base, indices, gates, now = drawn(10, dtype=dtype)
    gates = gates.astype(np.float32)
    gates[:, 1] = 1
    now[:, 0] = math.nan
    now[:, 3] = base[np.arange(3), indices[:, 3]]
    out = in_onnx(blend_body, (base, indices, gates, now), library)
    for b in range(3):
        np.testing.assert_allclose(out[b, indices[b, 1]], now[b, 1], rtol=0, atol=5e-7 if dtype == np.float32 else 4e-3)
        for token in set(range(base.shape[1])) - {int(indices[b, 1])}:
            assert out[b, token].tobytes() == base[b, token].tobytes()


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_blending_does_not_depend_on_threads():
    arrays = drawn(11, 2, 500, 125, 384)
    one, four = (in_onnx(blend_body, arrays, CPU_KERNELS, threads) for threads in (1, 4))
    assert one.tobytes() == four.tobytes()


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_a_blend_that_does_not_fit_is_refused():
    base, indices, gates, now = drawn(12)
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="BlendTokens: base must be"):
        in_onnx(blend_body, (base, indices, gates, now[..., :4]), CPU_KERNELS)
    indices[1, 2] = 8
    with pytest.raises(fails, match="BlendTokens: an index lies outside of the sequence"):
        in_onnx(blend_body, (base, indices, gates, now), CPU_KERNELS)
