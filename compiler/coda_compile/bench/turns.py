"""A coordinator that gives turns: A B C A B C …

Runtimes' spinning threads disturb each other inside one process, and machines drift; so each contender has a process
of its own and every round visits all of them.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from coda_compile.errors import CodaError
from coda_targets.bundle import Arrays

WARM_UP = 3


def in_turns(
    contenders: Mapping[str, Path],
    inputs: Arrays,
    *,
    rounds: int = 20,
    threads: int = 0,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Latency of bundles on the same input.

    Args:
        contenders: bundle folders by name.
        inputs: what each of them runs.
        rounds: measured rounds, after ``WARM_UP`` that do not count.
        threads: of each contender, equal; 0 for onnxruntime's choice.

    Returns:
        Seconds of every measured round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        feed = Path(folder) / "inputs.npz"
        np.savez(feed, **inputs)  # type: ignore[arg-type]  # numpy's stub confuses names and flags
        workers = {name: _start(stack, bundle, feed, threads) for name, bundle in contenders.items()}
        for round_ in range(WARM_UP + rounds):
            for name, worker in workers.items():
                took = _turn(name, worker)
                if round_ >= WARM_UP:
                    seconds[name].append(took)
            on_round()
    return seconds


def _start(stack: ExitStack, bundle: Path, feed: Path, threads: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "coda_compile.bench.worker", str(bundle), str(feed), str(threads)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stack.enter_context(worker)
    stack.callback(worker.kill)
    _read(str(bundle), worker)
    return worker


def _turn(name: str, worker: "subprocess.Popen[str]") -> float:
    assert worker.stdin is not None
    worker.stdin.write("run\n")
    worker.stdin.flush()
    return float(_read(name, worker))


def _read(name: str, worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    assert worker.stderr is not None
    line = worker.stdout.readline()
    if not line:
        reason = (worker.stderr.read().strip() or "it ended without a word").splitlines()[-1]
        raise CodaError(f"{name} cannot be measured: {reason}")
    return line


def ratio(baseline: list[float], contender: list[float]) -> tuple[float, float, float]:
    """How many times faster a contender is: the median over rounds of the ratio within a round, and its quartiles."""
    ratios = sorted(a / b for a, b in zip(baseline, contender, strict=True))
    return median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
