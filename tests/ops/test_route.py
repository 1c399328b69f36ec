"""Route against a float64 oracle written from CODA.md's formulas, its properties, gradients and ONNX body."""

import math
from dataclasses import astuple
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import route_attributes, run_node
from tests.ops.route_oracle import gates_oracle, selection_oracle

from coda_ops import DOMAIN
from coda_ops.capacity import slot_count
from coda_ops.route import Schedule, body, cuda_body, openvino_body, route, soft_top_k

REDUCTIONS = [Fraction(1), Fraction(2), Fraction(3), Fraction(4), Fraction(7, 2), Fraction(9, 8), Fraction(100)]
EPSILONS = [0.03, 1.0]
examples = settings(max_examples=120, deadline=None, derandomize=True)


def routed(scores, mask, reduction, final=0.03):
    """Route's outputs as numpy arrays."""
    outputs = route(torch.as_tensor(scores), torch.as_tensor(mask), reduction, Schedule(final=final))
    return [output.numpy() for output in outputs]


def check_selection(scores, mask, reduction):
    """Every promise about indices and used; returns Route's outputs."""
    scores, mask = np.asarray(scores), np.asarray(mask)
    indices, gates, used = routed(scores, mask, reduction)
    batch, tokens = scores.shape
    assert indices.shape == gates.shape == used.shape == (batch, math.ceil(tokens / reduction))
    assert np.isfinite(gates).all()
    assert ((gates >= 0) & (gates <= 1)).all()
    for row in range(batch):
        wanted = selection_oracle(scores[row], mask[row], reduction)
        k = len(wanted)
        assert used[row].tolist() == [slot < k for slot in range(used.shape[1])]
        assert indices[row, :k].tolist() == wanted
        assert len(set(indices[row].tolist())) == indices.shape[1]
        assert ((indices[row] >= 0) & (indices[row] < tokens)).all()
        assert not set(indices[row, k:].tolist()) & set(wanted)
        assert (gates[row, k:] == 0).all()
    return indices, gates, used


@st.composite
def batches(draw, values=None):
    """(scores, mask, reduction); many ties, masks with holes, rows without any valid token."""
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    if values is None:
        values = st.one_of(
            st.integers(-2, 2).map(float), st.floats(-8, 8, width=32), st.sampled_from([math.inf, -math.inf])
        )
    row = st.lists(values, min_size=tokens, max_size=tokens)
    valid = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
    scores = draw(st.lists(row, min_size=batch, max_size=batch))
    mask = draw(st.lists(valid, min_size=batch, max_size=batch))
    reduction = draw(
        st.sampled_from(REDUCTIONS) | st.builds(lambda p, q: Fraction(p + q, q), st.integers(0, 40), st.integers(1, 9))
    )
    return np.array(scores, dtype=np.float32), np.array(mask), reduction


@given(batches())
@examples
def test_selection_is_the_oracles_and_slots_keep_their_promises(batch):
    check_selection(*batch)


@given(batches(values=st.floats(-8, 8)), st.sampled_from(EPSILONS))
@examples
def test_gates_are_the_oracles_in_float64(batch, final):
    scores, mask, reduction = batch
    scores = scores.astype(np.float64)
    indices, gates, used = routed(scores, mask, reduction, final)
    for row in range(len(scores)):
        wanted = np.where(used[row], gates_oracle(scores[row], mask[row], reduction, final)[indices[row]], 0.0)
        np.testing.assert_allclose(gates[row], wanted, rtol=0, atol=1e-9)


@given(batches(values=st.floats(-8, 8, width=32)), st.sampled_from(EPSILONS))
@examples
def test_gates_of_float32_scores_are_the_oracles_rounded(batch, final):
    scores, mask, reduction = batch
    indices, gates, used = routed(scores, mask, reduction, final)
    for row in range(len(scores)):
        wanted = np.where(used[row], gates_oracle(scores[row], mask[row], reduction, final)[indices[row]], 0.0)
        np.testing.assert_allclose(gates[row], wanted, rtol=0, atol=1e-7)  # rounded once, at the end


def test_the_unconverged_iteration_is_reproduced():
    """At ε = 0.03 Σλ falls short of k: an exact solver would fail here."""
    scores = torch.linspace(-3, 3, 64, dtype=torch.float64).unsqueeze(0)
    mask = torch.ones(1, 64, dtype=torch.bool)
    gates = soft_top_k(scores, mask, Fraction(4), Schedule())
    wanted = gates_oracle(scores[0].numpy(), mask[0].numpy(), Fraction(4), 0.03)
    np.testing.assert_allclose(gates[0].numpy(), wanted, rtol=0, atol=1e-9)
    assert abs(float(gates.sum()) - 16) > 0.01


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 33])
def test_all_scores_equal_select_the_first(tokens, reduction):
    indices, _, used = check_selection(np.zeros((1, tokens)), np.ones((1, tokens), bool), reduction)
    k = math.ceil(tokens / reduction)
    assert indices[0, used[0]].tolist() == list(range(k))


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_blocks_of_equal_scores_fill_from_the_left(width):
    scores = np.repeat(np.array([0.0, 3.0, 1.0, 3.0, 2.0, 1.0]), width)[None]
    check_selection(scores, np.ones_like(scores, bool), Fraction(2))


def test_the_boundary_inside_a_tie_goes_to_the_lowest_position():
    scores = np.array([[1.0, 5.0, 5.0, 0.0, 5.0, 5.0, 9.0, 5.0]])
    indices, _, _ = check_selection(scores, np.ones_like(scores, bool), Fraction(2))  # k = 4: the 9 and three 5s
    assert indices.tolist() == [[1, 2, 4, 6]]


def test_a_tie_beyond_the_sizes_that_sort_stably_by_chance():
    scores = np.zeros((2, 4096), np.float32)
    scores[1, ::2] = 1.0
    indices, _, _ = check_selection(scores, np.ones_like(scores, bool), Fraction(8))
    assert indices[0].tolist() == list(range(512))
    assert indices[1].tolist() == list(range(0, 1024, 2))


@pytest.mark.parametrize("valid", [-math.inf, math.inf, -1e38, 1e38, -1e30, 0.0])
@pytest.mark.parametrize("padding", [-math.inf, math.inf, 1e38, 0.0])
def test_padding_is_never_selected_whatever_it_scores(valid, padding):
    mask = np.array([[False, True, False, True, True, False, False, True]])
    scores = np.where(mask, valid, padding).astype(np.float32)
    indices, gates, used = check_selection(scores, mask, Fraction(2))
    assert indices[0, used[0]].tolist() == [1, 3]
    assert (gates[used] > 0).all()


def test_one_valid_token_is_routed_with_gate_one():
    mask = np.eye(5, dtype=bool)
    indices, gates, used = check_selection(np.tile(np.float32([-9, 3, 0, 2, 1]), (5, 1)), mask, Fraction(4))
    assert indices[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert gates[:, 0].tolist() == [1.0] * 5
    assert used.tolist() == [[True, False]] * 5


def test_no_valid_token_routes_none():
    scores = np.array([[1.0, math.inf, -math.inf, 0.0]])
    _, gates, used = check_selection(scores, np.zeros((1, 4), bool), Fraction(2))
    assert not used.any()
    assert (gates == 0).all()


@pytest.mark.parametrize("reduction", [Fraction(1), Fraction(1001, 1000), Fraction(9, 8)])
@pytest.mark.parametrize("final", EPSILONS)
def test_gates_are_exactly_one_where_nothing_is_left_out(reduction, final):
    """ceil(n / r) = n also for r a little above 1; the iteration alone would give 0.88."""
    rng = np.random.default_rng(0)
    mask = np.arange(8) < np.array([[1], [3], [7], [8]])
    scores = rng.normal(size=(4, 8)) * 5
    _, gates, used = routed(scores, mask, reduction, final)
    whole = np.array([math.ceil(int(n) / reduction) == n for n in mask.sum(1)])
    assert whole[:3].all()
    assert (gates[whole][used[whole]] == 1.0).all()
    assert (used.sum(1)[whole] == mask.sum(1)[whole]).all()


@pytest.mark.parametrize(
    ("n", "reduction", "k"),
    [(7, "7/2", 2), (8, "7/2", 3), (1, "7/2", 1), (0, "7/2", 0), (10, "5/2", 4), (2**53 + 1, "1", 2**53 + 1)],
)
def test_slot_count_is_exact(n, reduction, k):
    assert slot_count(n, Fraction(reduction)) == k


def test_seven_halves_counts_valid_tokens_not_padded_ones():
    mask = np.arange(16) < np.array([[16], [7], [8], [1]])
    _, _, used = check_selection(np.zeros((4, 16)), mask, Fraction(7, 2))
    assert used.sum(1).tolist() == [5, 2, 3, 1]


@given(batches(values=st.floats(-8, 8)), st.integers(1, 9), st.integers(0, 2**31))
@examples
def test_an_example_depends_on_neither_batch_nor_padding(batch, more, seed):
    scores, mask, reduction = batch
    scores = scores.astype(np.float64)
    noise = np.random.default_rng(seed).normal(size=(len(scores), more)) * 100
    for left in (False, True):
        side = [noise, scores] if left else [scores, noise]
        off = np.zeros((len(scores), more), bool)
        padded = np.concatenate(side, 1), np.concatenate([off, mask] if left else [mask, off], 1)
        indices, gates, used = routed(*padded, reduction)
        for row in range(len(scores)):
            alone, alone_gates, alone_used = routed(scores[row : row + 1], mask[row : row + 1], reduction)
            shift = more if left else 0
            assert (indices[row, used[row]] - shift).tolist() == alone[0, alone_used[0]].tolist()
            np.testing.assert_allclose(gates[row, used[row]], alone_gates[0, alone_used[0]], rtol=0, atol=1e-12)


def test_scores_move_the_gates_of_routed_tokens():
    """A gate has the rank of its score, the clear winner gets 1 and the clear loser next to nothing."""
    scores = np.array([[4.0, -1.0, 0.1, 0.0, -2.0, 0.2, -3.0, -4.0]])
    indices, gates, _ = check_selection(scores, np.ones_like(scores, bool), Fraction(2))
    assert indices.tolist() == [[0, 2, 3, 5]]
    assert gates[0, 0] == 1.0
    every = soft_top_k(torch.tensor(scores), torch.ones(1, 8, dtype=torch.bool), Fraction(2), Schedule())
    assert (np.argsort(every[0].numpy()[1:]) == np.argsort(scores[0, 1:])).all()
    assert float(every[0, -1]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gates_are_float32_or_better(dtype):
    scores = torch.randn(2, 12).to(dtype)
    _, gates, _ = route(scores, torch.ones(2, 12, dtype=torch.bool), Fraction(3), Schedule())
    assert gates.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("final", EPSILONS)
@pytest.mark.parametrize("reduction", [Fraction(2), Fraction(7, 2)])
def test_gradients_in_float64(final, reduction):
    torch.manual_seed(0)
    scores = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    mask[0, 2] = False
    assert torch.autograd.gradcheck(lambda s: route(s, mask, reduction, Schedule(final=final))[1], scores)


def test_the_gradient_reaches_tokens_that_were_not_selected():
    """logsumexp runs over all valid tokens: a close loser must feel its loss, padding nothing."""
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.0, 5.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, True, False]])
    indices, gates, _ = route(scores, mask, Fraction(2), Schedule(final=1.0))
    gates.sum().backward()
    assert indices[0, :2].tolist() == [0, 2]
    assert float(scores.grad[0, 1]) != 0
    assert float(scores.grad[0, 4]) == 0


def test_opcheck():
    scores = torch.randn(2, 7)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    rest = (mask, 7, 2, 20, 4.0, 0.7, 0.03)
    torch.library.opcheck(torch.ops.coda.route.default, (scores, *rest))
    # opcheck's own aot test adds all outputs up in the first one's type, here int64, so gradients are left out of it
    torch.library.opcheck(
        torch.ops.coda.route.default,
        (scores.requires_grad_(), *rest),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_compiled_gradients_are_the_eager_ones():
    mask = torch.arange(7) < torch.tensor([[7], [3]])

    def gates(scores):
        return route(scores, mask, Fraction(7, 2), Schedule())[1]

    scores = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    (eager,) = torch.autograd.grad((gates(scores) * weights).sum(), scores)
    compiled = torch.compile(gates, backend="aot_eager", fullgraph=True)
    (traced,) = torch.autograd.grad((compiled(scores) * weights).sum(), scores)
    assert bool(eager.any())
    assert torch.equal(eager, traced)


def test_the_schema_is_registered():
    assert onnx.defs.has("Route", DOMAIN)


bodies = pytest.mark.parametrize("make", [body, cuda_body, openvino_body])


def check_body(make, scores, mask, reduction, final):
    scores, schedule = scores.astype(np.float32), Schedule(final=final)
    indices, gates, used = run_node(
        make(*astuple(schedule)), {"scores": scores, "mask": mask}, route_attributes(reduction, schedule)
    )
    wanted_indices, wanted_gates, wanted_used = routed(scores, mask, reduction, final)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(used, wanted_used)
    np.testing.assert_allclose(gates, wanted_gates, rtol=0, atol=1e-7)


@pytest.mark.parametrize("final", EPSILONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("tokens", [1, 8, 37])
@bodies
def test_the_onnx_body_is_the_torch_operator(make, tokens, reduction, final):
    rng = np.random.default_rng(tokens)
    scores = rng.normal(size=(6, tokens))
    scores[1] = 0.0
    scores[2] = scores[2].round()  # ties
    mask = rng.random((6, tokens)) < 0.7
    mask[3], mask[4] = True, False
    check_body(make, scores, mask, reduction, final)


@pytest.mark.parametrize("final", EPSILONS)
@pytest.mark.parametrize("values", [(1e30, -1e30, 1e29), (math.inf, -math.inf, 0.0), (3e38, 1e10, -3e38, math.inf)])
@bodies
def test_the_onnx_body_is_the_torch_operator_at_large_magnitudes(make, values, final):
    rng = np.random.default_rng(0)
    scores = rng.choice(np.array(values, np.float32), size=(8, 21))
    mask = rng.random((8, 21)) < 0.8
    check_body(make, scores, mask, Fraction(7, 2), final)
