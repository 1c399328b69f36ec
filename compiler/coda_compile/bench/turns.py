"""A coordinator that gives turns: A B C A B C …

Runtimes' spinning threads disturb each other inside one process, and machines drift; so each contender has a process
of its own, which sleeps while it is not its turn, and every round visits all of them.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from coda_compile.bench.machine import thread_count
from coda_compile.errors import CodaError
from coda_ops.files import private_folder
from coda_targets import Bundle
from coda_targets.signature import Arrays, Signature

TURN_SECONDS = 0.05  # short runs are repeated within a turn until it lasts this long
_MOST_RUNS = 16
_STEADY = 0.05  # warm: two turns that differ by less
_MOST_WARM_UPS = 8
_CALIBRATION, _CALIBRATION_LENGTH = 16, 128  # inputs: enough for speed, which is all that is measured
_CAN_SLEEP = hasattr(signal, "SIGSTOP")


class Turn(NamedTuple):
    """Runs of one turn: a lead that does not count, finding caches full of another's weights, then those that do."""

    lead: int
    counted: int


class MeasuringError(CodaError):
    """A contender that cannot be measured."""


@dataclass(frozen=True)
class Contender:
    """Something to measure.

    Attributes:
        name: as in tables.
        opener: a function of ``coda_compile.bench.openers``.
        arguments: for it, plain values.
    """

    name: str
    opener: str
    arguments: dict[str, Any]

    @staticmethod
    def of_bundle(name: str, bundle: Bundle | Path, *, portable: bool = False, cuda_graph: bool = False) -> "Contender":
        """A bundle as a contender: the variant that was opened, or of a folder the best one here.

        Args:
            portable: as where no native kernels are installed.
            cuda_graph: replay a CUDA graph of each input.
        """
        folder = bundle.folder if isinstance(bundle, Bundle) else bundle
        arguments: dict[str, Any] = {"folder": str(folder.resolve()), "portable": portable}
        if isinstance(bundle, Bundle):
            arguments |= {"target": bundle.variant.target, "precision": bundle.variant.precision}
        if cuda_graph:
            arguments["cuda_graph"] = True
        return Contender(name, "bundle", arguments)


@dataclass
class Timings:
    """What was measured of one contender.

    Attributes:
        opened: seconds to create its session.
        first: seconds of the very first run on each input.
        runs: for each input and round the seconds of every counted run.
        peak_bytes: the most resident memory that its process ever held; 0 where the system does not tell.
    """

    opened: float
    first: list[float] = field(default_factory=list)
    runs: list[list[list[float]]] = field(default_factory=list)
    peak_bytes: int = 0

    def rounds(self, case: int = 0) -> list[float]:
        """One value a round: the median of its runs."""
        return [median(runs) for runs in self.runs[case]]

    def every_run(self, case: int = 0) -> list[float]:
        """All counted runs on one input."""
        return [seconds for runs in self.runs[case] for seconds in runs]


class Worker:
    """A contender's process; asleep except while it opens or runs."""

    def __init__(self, contender: Contender, feeds: Sequence[Path], folder: Path, threads: int) -> None:
        self.name = contender.name
        spec = folder / f"{id(self)}.json"
        plain = {"opener": contender.opener, "arguments": contender.arguments, "threads": threads}
        spec.write_text(json.dumps({**plain, "inputs": [str(feed) for feed in feeds]}), "utf-8")
        self._log = (folder / f"{id(self)}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "coda_compile.bench.worker", str(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        try:
            self.opened = float(self._read()["opened"])
            self._sleep()
        except BaseException:
            self.close()
            raise

    def run(self, case: int, runs: int) -> list[float]:
        """Seconds of some runs on one input.

        Raises:
            MeasuringError: what the contender says, or that it ended.
        """
        seconds: list[float] = self._ask({"input": case, "runs": runs})["seconds"]
        return seconds

    def peak_bytes(self) -> int:
        """The most resident memory that the process ever held."""
        return int(self._ask({"peak": True})["peak"])

    def close(self) -> None:
        """End the process, asleep or not."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._wake()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        answer = self._read()
        self._sleep()
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise MeasuringError(f"{self.name} cannot be measured: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        if status == -getattr(signal, "SIGKILL", 9):
            return "the system killed it, probably for lack of memory"
        return lines[-1] if lines else f"it ended with status {status}"

    def _sleep(self) -> None:
        if _CAN_SLEEP:
            self._process.send_signal(signal.SIGSTOP)

    def _wake(self) -> None:
        if _CAN_SLEEP:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def started(
    contenders: Sequence[Contender],
    inputs: Sequence[Arrays],
    *,
    threads: int,
    on_failure: Callable[[MeasuringError], None],
) -> Iterator[list[Worker]]:
    """Processes for contenders, ended with the block; one that cannot start is told to ``on_failure`` and left out."""
    workers: list[Worker] = []
    with private_folder() as folder:
        feeds = [folder / f"input-{i}.npz" for i in range(len(inputs))]
        for feed, arrays in zip(feeds, inputs, strict=True):
            np.savez(feed, **arrays)  # type: ignore[arg-type]  # numpy's stub confuses names and flags
        try:
            for contender in contenders:
                try:
                    workers.append(Worker(contender, feeds, folder, threads))
                except MeasuringError as error:
                    on_failure(error)
            yield workers
        finally:
            for worker in workers:
                worker.close()


def _fail(error: MeasuringError) -> None:
    raise error


def in_turns(
    contenders: Sequence[Contender],
    inputs: Sequence[Arrays],
    *,
    rounds: int = 20,
    threads: int = 0,
    on_round: Callable[[], None] = lambda: None,
    on_failure: Callable[[MeasuringError], None] = _fail,
) -> dict[str, Timings]:
    """Latency of contenders on the same inputs, one running at a time.

    Args:
        contenders: with distinct names.
        inputs: each contender runs each of them.
        rounds: measured rounds for each input, after a warm-up that lasts until the times are steady.
        threads: of each contender, equal; 0 for all cores.
        on_round: called after every round.
        on_failure: what to do about a contender that cannot be measured; by default it ends the measurement.

    Returns:
        Timings by name, of those that could be measured.

    Raises:
        MeasuringError: a contender that cannot be measured, from ``on_failure``.
    """
    threads = thread_count(threads)
    with started(contenders, inputs, threads=threads, on_failure=on_failure) as workers:
        timings = {worker.name: Timings(worker.opened) for worker in workers}
        for case in range(len(inputs)):
            turns: dict[str, Turn] = {}
            for worker in list(workers):
                try:
                    first, turns[worker.name] = warm_up(worker, case)
                except MeasuringError as error:
                    on_failure(error)
                    workers.remove(worker)
                    worker.close()
                    del timings[worker.name]
                    continue
                timings[worker.name].first.append(first)
                timings[worker.name].runs.append([])
            for _ in range(rounds):
                for worker in workers:
                    lead, counted = turns[worker.name]
                    timings[worker.name].runs[case].append(worker.run(case, lead + counted)[lead:])
                on_round()
        for worker in workers:
            timings[worker.name].peak_bytes = worker.peak_bytes()
    return timings


def warm_up(worker: Worker, case: int, turn_seconds: float = TURN_SECONDS) -> tuple[float, Turn]:
    """Seconds of the very first run, and what fills a turn of that many seconds once the times are steady."""
    (first,) = worker.run(case, 1)
    before = float("inf")
    for _ in range(_MOST_WARM_UPS):
        now = min(worker.run(case, 2))
        steady = abs(now - before) < _STEADY * before
        before = now
        if steady:
            break
    counted = max(1, min(_MOST_RUNS, round(turn_seconds / before)))
    return first, Turn(lead=int(before < 2 * turn_seconds), counted=counted)


def calibration_inputs(signature: Signature) -> list[Arrays]:
    """Inputs that ranges of activations are taken from, where none are at hand: latency does not depend on which."""
    length = min(_CALIBRATION_LENGTH, signature.max_length)
    return [signature.random(1, length, seed=seed) for seed in range(_CALIBRATION)]
