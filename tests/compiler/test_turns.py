"""The coordinator: turns, equal inputs, and failures of a contender."""

from pathlib import Path

import numpy as np
import pytest

from coda_compile.bench.turns import WARM_UP, in_turns, ratio
from coda_ops import CodaError
from coda_targets import Bundle

INPUTS = {"input_ids": np.arange(4, 20).reshape(2, 8)}


def test_every_round_visits_every_contender(compiled: Bundle):
    rounds: list[int] = []
    seconds = in_turns(
        {"a": compiled.folder, "b": compiled.folder}, INPUTS, rounds=4, threads=1, on_round=lambda: rounds.append(1)
    )
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert len(rounds) == 4 + WARM_UP
    assert all(value > 0 for values in seconds.values() for value in values)


def test_a_contender_that_cannot_run_is_named(compiled: Bundle, tmp_path: Path):
    with pytest.raises(CodaError, match=r"cannot be measured"):
        in_turns({"good": compiled.folder, "broken": tmp_path}, INPUTS, rounds=1, threads=1)


def test_inputs_that_do_not_fit_are_told(compiled: Bundle):
    with pytest.raises(CodaError, match=r"cannot be measured.*at most 66"):
        in_turns({"long": compiled.folder}, {"input_ids": np.ones((1, 90), int)}, rounds=1, threads=1)


def test_ratio_pairs_rounds():
    middle, low, high = ratio([4.0, 8.0, 2.0, 6.0], [1.0, 2.0, 1.0, 2.0])
    assert (middle, low, high) == (3.5, 3.0, 4.0)
