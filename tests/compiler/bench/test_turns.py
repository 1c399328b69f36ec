"""The coordinator: turns, equal inputs, and failures of a contender."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coda_compile.bench.turns import Contender, MeasuringError, Timings, in_turns, started
from coda_targets import Bundle

INPUTS = {"input_ids": np.arange(4, 20).reshape(2, 8)}


def test_every_round_visits_every_contender_and_input(compiled: Bundle):
    rounds: list[int] = []
    timings = in_turns(
        [Contender.of_bundle(name, compiled.folder) for name in "ab"],
        [INPUTS, compiled.manifest.signature.random(1, 4)],
        rounds=4,
        threads=1,
        on_round=lambda: rounds.append(1),
    )
    assert sorted(timings) == ["a", "b"]
    assert len(rounds) == 2 * 4
    for timing in timings.values():
        assert [len(case) for case in timing.runs] == [4, 4]
        assert all(seconds > 0 for case in (0, 1) for seconds in timing.every_run(case))
        assert len(timing.rounds(1)) == len(timing.first) + 2 == 4
        assert timing.opened > 0
        assert timing.peak_bytes > 1 << 20


def test_a_round_is_the_median_of_its_runs():
    timings = Timings(1.0, runs=[[[3.0, 1.0, 2.0], [5.0]]])
    assert timings.rounds() == [2.0, 5.0]
    assert timings.every_run() == [3.0, 1.0, 2.0, 5.0]


def test_a_contender_that_cannot_start_is_named_and_may_be_left_out(compiled: Bundle, tmp_path: Path):
    contenders = [Contender.of_bundle("good", compiled.folder), Contender.of_bundle("broken", tmp_path)]
    with pytest.raises(MeasuringError, match=r"^broken cannot be measured: .*is no bundle"):
        in_turns(contenders, [INPUTS], rounds=1, threads=1)
    failures: list[MeasuringError] = []
    assert sorted(in_turns(contenders, [INPUTS], rounds=1, threads=1, on_failure=failures.append)) == ["good"]
    assert len(failures) == 1


def test_inputs_that_do_not_fit_are_told(compiled: Bundle):
    long = [{"input_ids": np.ones((1, 90), int)}]
    with pytest.raises(MeasuringError, match=r"long cannot be measured.*at most 66"):
        in_turns([Contender.of_bundle("long", compiled.folder)], long, rounds=1, threads=1)


def test_an_opener_that_raises_is_told_in_one_line():
    with pytest.raises(MeasuringError, match=r"^gone cannot be measured: .*does-not-exist"):
        in_turns([Contender("gone", "onnx", {"path": "does-not-exist.onnx"})], [INPUTS], rounds=1, threads=1)


def test_more_threads_than_cores_are_refused(compiled: Bundle):
    with pytest.raises(Exception, match="measure the scheduler"):
        in_turns([Contender.of_bundle("a", compiled.folder)], [INPUTS], threads=10_000)


def test_processes_end_with_the_block(compiled: Bundle):
    with started([Contender.of_bundle("a", compiled.folder)], [INPUTS], threads=1, on_failure=print) as workers:
        process = workers[0]._process.pid
        assert len(workers[0].run(0, 3)) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends a process with its parent")
def test_a_sleeping_process_ends_with_its_coordinator_however_that_dies(compiled: Bundle, tmp_path: Path):
    program = f"""
from pathlib import Path
import numpy as np
from coda_compile.bench.turns import Contender, started
inputs = [{{"input_ids": np.ones((1, 8), int)}}]
contender = Contender.of_bundle("a", Path({str(compiled.folder)!r}))
with started([contender], inputs, threads=1, on_failure=print) as workers:
    print(workers[0]._process.pid, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # what is killed cleans nothing up
    ) as coordinator:
        assert coordinator.stdout is not None
        status = Path("/proc", coordinator.stdout.readline().strip(), "status")
        assert _lives(status)
        coordinator.kill()
    end = time.monotonic() + 10
    while _lives(status) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _lives(status)


def _lives(status: Path) -> bool:
    """Whether a process is there, and more than an entry that nobody has collected yet."""
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
