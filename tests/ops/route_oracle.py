"""Route in float64 numpy, straight from CODA.md's formulas, one example at a time."""

import math

import numpy as np


def selection_oracle(scores, mask, reduction):
    """The positions of one example, ascending: highest scores first, ties to the lowest position."""
    valid = [i for i, ok in enumerate(mask) if ok]
    k = min(len(valid), max(1, math.ceil(len(valid) / reduction)))
    return sorted(sorted(valid, key=lambda i: (-scores[i], i))[:k])


def gates_oracle(scores, mask, reduction, final):
    """λ of one example's tokens, 0 for padding; the paper's own iteration with both a and b."""
    gates = np.zeros(len(scores))
    valid = np.flatnonzero(mask)
    n = len(valid)
    if n == 0:
        return gates
    k = max(1, math.ceil(n / reduction))
    if k == n:
        gates[valid] = 1.0
        return gates
    s = np.asarray(scores, dtype=np.float64)[valid]
    b = np.zeros(n)
    for t in range(20):
        epsilon = max(final, 4 * 0.7**t)
        v = (s + b) / epsilon
        a = epsilon * (math.log(k) - (v.max() + math.log(np.exp(v - v.max()).sum())))
        b = np.minimum(-s - a, 0.0)
    gates[valid] = np.exp((s + a + b) / epsilon)
    return gates
