"""What must hold of the CUDA kernels, on numpy alone: run as a script, it holds a library against examples of all kinds."""

import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from tests.ops.cuda_emulation.emulator import Emulator
from tests.ops.route_oracle import gates_oracle, selection_oracle

LIMIT = 1e29  # as coda_ops.route.LIMIT, which would load torch
FINAL = 0.03
EPSILONS = [max(FINAL, 4 * 0.7**t) for t in range(20)]  # the oracle's
REDUCTIONS = [Fraction(text) for text in ("1", "3/2", "2", "4", "8", "7/2", "1001/1000")]
EXTREMES = [0.0, -0.0, 0.5, 1.0, 1.0000001, -3.0, 1e-30, 9e28, 1e29, 1e30, -1e30, math.inf, -math.inf]


def check_route(kernels, scores, mask, reduction):
    """Selection, idle slots and gates of every row as the oracle has them."""
    scores = np.asarray(scores, np.float32)
    indices, gates, used = kernels.route(scores, mask, reduction, EPSILONS)
    for row, (score, valid) in enumerate(zip(np.clip(scores, -LIMIT, LIMIT), mask, strict=True)):
        selected = selection_oracle(score, valid, reduction)
        k, slots = len(selected), indices.shape[1]
        best_first = sorted(range(len(score)), key=lambda i: (-(score[i] if valid[i] else -10 * LIMIT), i))
        assert indices[row].tolist() == selected + sorted(best_first[k:slots])
        assert used[row].tolist() == [slot < k for slot in range(slots)]
        shifted = score.astype(np.float64) - np.max(score, initial=-LIMIT, where=valid)  # gates stay what they are
        expected = gates_oracle(shifted, valid, float(reduction), FINAL)[indices[row]]
        np.testing.assert_allclose(gates[row], np.where(used[row], expected, 0), rtol=0, atol=1e-6)


def rows(rng, batch, tokens):
    """Scores of several spreads, with ties or without, and ragged texts or masks with holes."""
    scores = rng.normal(size=(batch, tokens)) * rng.choice([1e-3, 1, 10, 1e3, 1e28], size=(batch, 1))
    kind = rng.integers(0, 4, size=(batch, 1))
    scores = np.where(kind == 1, np.round(scores / np.abs(scores).max() * 2), scores)
    scores = np.where(kind == 2, scores[:, :1], scores)
    ragged = np.arange(tokens) < rng.integers(0, tokens + 1, size=(batch, 1))
    return scores.astype(np.float32), np.where(kind == 3, rng.random((batch, tokens)) < 0.5, ragged)


def check_moves(kernels, seed, batch, tokens, slots, width, dtype, *, in_place=False, offset=0):
    """TakeTokens, PutTokens and PutDifference of distinct indices; what a closed gate would put back is NaN."""
    rng = np.random.default_rng(seed)
    indices = rng.permuted(np.tile(np.arange(tokens), (batch, 1)), axis=1)[:, :slots]
    gates = np.where(rng.random((batch, slots)) < 0.3, 0, rng.random((batch, slots))).astype(np.float32)
    base = rng.normal(size=(batch, tokens, width)).astype(dtype)
    now, before = rng.normal(size=(2, batch, slots, width)).astype(dtype)
    now[gates == 0] = math.nan
    at = indices[..., None]
    np.testing.assert_array_equal(kernels.take(base, indices, offset), np.take_along_axis(base, at, 1))
    exact = {np.float32: 1e-6, np.float16: 2e-3}[dtype]
    for less in (None, before):
        out = kernels.put(base, indices, gates, now, less, in_place=in_place, offset=offset)
        change = now.astype(np.float64) - (0 if less is None else less)
        wanted = base.astype(np.float64)
        old = np.take_along_axis(wanted, at, 1)
        np.put_along_axis(wanted, at, np.where(gates[..., None] > 0, old + gates[..., None] * change, old), 1)
        np.testing.assert_allclose(out, wanted, rtol=exact, atol=exact)
        untouched = np.ones(base.shape[:2], bool)
        np.put_along_axis(untouched, indices, gates == 0, axis=1)
        assert out[untouched].tobytes() == base[untouched].tobytes()


def check_bad_indices(kernels):
    """An index outside of its text reads zeros and writes nothing."""
    rng = np.random.default_rng(1)
    base, now = rng.normal(size=(2, 12, 8)).astype(np.float32), rng.normal(size=(2, 5, 8)).astype(np.float32)
    indices, gates = np.tile(np.arange(5), (2, 1)), np.ones((2, 5), np.float32)
    wanted = kernels.put(base, indices, gates * (np.arange(5) != 3), now)
    for bad in (-1, 12, 2**40, -(2**40)):
        indices[:, 3] = bad
        taken = kernels.take(base, indices)
        assert not taken[:, 3].any()
        np.testing.assert_array_equal(taken[:, :3], base[:, :3])
        np.testing.assert_array_equal(kernels.put(base, indices, gates, now), wanted)


def check_all(kernels):
    """Examples of all kinds."""
    rng = np.random.default_rng(0)
    for turn in range(40):
        kernels.take_turns(turn)
        reduction = REDUCTIONS[turn % len(REDUCTIONS)]
        tokens = int(rng.integers(1, 40))
        check_route(kernels, rng.choice(EXTREMES, (2, tokens)), rng.random((2, tokens)) < 0.7, reduction)
        check_route(kernels, *rows(rng, 3, int(rng.choice([1, 31, 64, 255, 257, 700]))), reduction)
        dtype = (np.float32, np.float16)[turn % 2]
        width = int(rng.choice([1, 7, 64, 96, 384]))
        check_moves(kernels, turn, 2, tokens, tokens // 2, width, dtype, in_place=turn % 3 == 0, offset=turn % 4)
    tokens = kernels.most_shared_tokens + 1
    check_route(kernels, rng.normal(size=(1, tokens)).round(1), np.ones((1, tokens), bool), Fraction(2))
    check_bad_indices(kernels)


if __name__ == "__main__":
    check_all(Emulator(Path(sys.argv[1])))
