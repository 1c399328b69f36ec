"""The CUDA kernels, emulated on a CPU, against float64 oracles and torch; what a fault in them would do is found."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.cuda_emulation import checks
from tests.ops.cuda_emulation.checks import EXTREMES, REDUCTIONS, check_moves, check_route, rows
from tests.ops.cuda_emulation.emulator import COMPILER, Emulator, compile_kernels

from coda_ops.route import LIMIT, Schedule, route

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the emulation needs g++")
examples = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return Emulator(compile_kernels(tmp_path_factory.mktemp("emulated")))


@given(
    st.lists(st.tuples(st.sampled_from(EXTREMES), st.booleans()), min_size=1, max_size=40),
    st.sampled_from(REDUCTIONS),
    st.integers(0, 99),
)
@examples
def test_route_of_ties_and_extremes(kernels, row, reduction, turns):
    kernels.take_turns(turns)
    scores, mask = zip(*row, strict=True)
    check_route(kernels, [scores], np.array([mask]), reduction)


@given(
    st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([1, 2, 31, 33, 64, 255, 256, 257, 512, 700]), st.data()
)
@examples
def test_route_of_ragged_rows(kernels, seed, batch, tokens, data):
    kernels.take_turns(seed)
    check_route(kernels, *rows(np.random.default_rng(seed), batch, tokens), data.draw(st.sampled_from(REDUCTIONS)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("more", [0, 1, 1000])
def test_a_long_row_is_read_again_and_again(kernels, reduction, more):
    """The longest that shared memory holds, and longer ones, which stay where they are."""
    tokens = kernels.most_shared_tokens + more
    scores = np.random.default_rng(tokens).normal(size=(1, tokens)).round(1)
    check_route(kernels, scores, np.arange(tokens)[None] < tokens - 7, reduction)


def test_route_of_nothing(kernels):
    for batch, tokens in ((0, 5), (3, 0), (0, 0)):
        mask = np.ones((batch, tokens), bool)
        indices, _, _ = kernels.route(np.zeros((batch, tokens)), mask, Fraction(2), checks.EPSILONS)
        assert indices.shape == (batch, (tokens + 1) // 2)
    check_route(kernels, np.ones((2, 9)), np.zeros((2, 9), bool), Fraction(2))


@pytest.mark.parametrize(
    "schedule",
    [Schedule(), Schedule(1), Schedule(300), Schedule(256, 1.0, 0.999, 1e-3), Schedule(20, final=1.0)],
)
def test_route_is_torch_s(kernels, schedule):
    rng = np.random.default_rng(0)
    for reduction in REDUCTIONS:
        scores, mask = rows(rng, 4, 60)
        made = kernels.route(scores, mask, reduction, schedule.epsilons())
        wanted = [x.numpy() for x in route(torch.from_numpy(scores), torch.from_numpy(mask), reduction, schedule)]
        np.testing.assert_array_equal(made[0], wanted[0])
        np.testing.assert_allclose(made[1], wanted[1], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(made[2], wanted[2])


def test_the_checks_are_about_torch_s_constants():
    assert checks.LIMIT == LIMIT
    assert Schedule().epsilons() == checks.EPSILONS


def test_a_schedule_that_falls_too_slowly_is_refused(kernels):
    with pytest.raises(ValueError, match="route was refused"):
        kernels.route(np.ones((1, 4)), np.ones((1, 4), bool), Fraction(2), Schedule(257, 1.0, 0.999, 1e-3).epsilons())


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    width=st.one_of(st.integers(1, 70), st.sampled_from([96, 128, 384])),
    dtype=st.sampled_from([np.float32, np.float16]),
    offset=st.sampled_from([0, 1, 8]),
    in_place=st.booleans(),
    data=st.data(),
)
@examples
def test_take_and_put(kernels, seed, batch, tokens, width, dtype, offset, in_place, data):
    kernels.take_turns(seed)
    slots = data.draw(st.integers(0, tokens))
    check_moves(kernels, seed, batch, tokens, slots, width, dtype, in_place=in_place, offset=offset)


@pytest.mark.parametrize(("shape", "slots"), [((0, 4, 8), 2), ((2, 4, 8), 0), ((2, 4, 0), 2)])
def test_moving_nothing(kernels, shape, slots):
    check_moves(kernels, 0, *shape[:2], slots, shape[2], np.float32)


def test_an_index_outside_of_the_text_reads_zeros_and_writes_nothing(kernels):
    checks.check_bad_indices(kernels)


@pytest.mark.slow
def test_more_texts_than_the_other_axes_of_a_grid_hold(kernels):
    check_moves(kernels, 0, 65_540, 1, 1, 1, np.float32)


FAULTS = {
    "none": {},
    "ties to the higher position": {"equal_routed++ < routed.ties": "equal_routed++ >= 1"},
    "minus zero is lower": {"__float_as_uint(saturated + 0.0f)": "__float_as_uint(saturated)"},
    "padding ties with the lowest score": {"constexpr float kPadding = -1e30f": "constexpr float kPadding = -1e29f"},
    "no saturation": {"fminf(fmaxf(score, -kLimit), kLimit)": "score"},
    "one epsilon too few": {"t < epsilons.iterations;": "t + 1 < epsilons.iterations;"},
    "an exponent of float32": {"fma(fma(fma(r, 1.0 / 6, 0.5), r, 1.0), r, 1.0)": "fma(r, 1.0, 1.0)"},
    "no barrier before the sums are read": {
        "if (lane == 0) scratch.sums[warp] = sum;\n    __syncthreads();": "if (lane == 0) scratch.sums[warp] = sum;"
    },
    "one buffer of partial counts": {
        "partial[warp] = upto;\n    __syncthreads();": "partial[warp] = upto;\n    turn_ = 0;\n    __syncthreads();"
    },
    "a barrier for some threads": {
        "  Highest routed, held;": "  if (threadIdx.x < 40) __syncthreads();\n  Highest routed, held;"
    },
    "a row that is too long for shared memory": {"tokens <= kMostSharedTokens;": "tokens <= kMostSharedTokens + 1;"},
    "gates of k = n are soft": {"const bool soft = k < n;": "const bool soft = k > 0;"},
    "idle slots from the first": {"next_idle = k + low_of(slot)": "next_idle = low_of(slot)"},
    "a closed gate writes": {"if (!(gate > 0.0f) || token < 0) return;": "if (token < 0) return;"},
    "steps that are not aligned": {"aligned(16, out, now, before)": "aligned(4, out, now, before)"},
    "base is not copied": {"if (out != base) {": "if (out == base) {"},
    "an index is not checked": {"index >= 0 && index < tokens ?": "index >= 0 ?"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    """It makes a check fail, or the emulation stop."""
    library = compile_kernels(tmp_path, FAULTS[fault])
    command = [sys.executable, "-m", "tests.ops.cuda_emulation.checks", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (fault == "none"), done.stderr
    assert fault == "none" or "AssertionError" in done.stderr or "refused" in done.stderr or done.returncode < 0
