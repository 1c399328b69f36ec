"""The result of a benchmark as JSON: versioned, always with the machine it was measured on."""

from dataclasses import dataclass
from pathlib import Path

from coda_compile.bench.machine import Machine
from coda_compile.errors import CodaError
from coda_compile.precision import UNQUANTISED
from coda_compile.statistics import Interval, Summary
from coda_ops.records import read_record, record_json
from coda_targets.fidelity import Fidelity
from coda_targets.runtimes import DEFAULT_TARGET

SCHEMA_VERSION = 1


def variant_of(reduction: str, precision: str, target: str, form: str = "") -> str:
    """What tells compiled models of one file apart: r; precision and target where not the default ones; and form."""
    others = [name for name, usual in ((precision, UNQUANTISED), (target, DEFAULT_TARGET)) if name != usual]
    return " ".join([reduction, *others, *([form] if form else [])])


@dataclass(frozen=True)
class Measurement:
    """One contender on one input.

    Attributes:
        contender: its name.
        precision: a compiled model's own, or what a baseline's comes closest to.
        reduction: r of a routed model, ``"1"`` for a dense one.
        batch, tokens: shape of the input, all tokens valid.
        target: that a compiled model was made for.
        form: how a session runs a compiled model, where there are several ways: ``CUDA graph``; or empty.
        seconds: of every counted run.
        rounds: seconds of each round, the median of its runs; what ratios are made of.
        summary: of ``seconds``.
        tokens_per_second: batch x tokens over the median.
        speed_up: for the dense contenders, how many times faster the compiled model of the same file runs, by its
            ``variant``; empty for compiled models.
        first_seconds: the very first run on this input.
        opened_seconds: creating the session.
        peak_bytes: the most resident memory of the process, over all its inputs.
        file_bytes: what would be deployed.
        multiply_adds: of the layers, for this input.
    """

    contender: str
    precision: str
    reduction: str
    batch: int
    tokens: int
    seconds: tuple[float, ...]
    rounds: tuple[float, ...]
    summary: Summary
    tokens_per_second: float
    speed_up: dict[str, Interval]
    first_seconds: float
    opened_seconds: float
    peak_bytes: int
    file_bytes: int
    multiply_adds: int
    target: str = DEFAULT_TARGET
    form: str = ""

    @property
    def variant(self) -> str:
        """See ``variant_of``."""
        return variant_of(self.reduction, self.precision, self.target, self.form)


@dataclass(frozen=True)
class Bound:
    """How far a compiled fp32 model can outrun the dense model in plain onnxruntime, and how much of it is reached.

    Attributes:
        ratio: of multiply-adds (Lei et al. 2023, section 4.4).
        reached: measured speed-up over that ratio.
        rate: multiply-adds a second of the compiled model, over the machine's own fp32 matrix-product rate.
    """

    reduction: str
    batch: int
    tokens: int
    ratio: float
    reached: float | None
    rate: float


@dataclass(frozen=True)
class Skipped:
    """A contender that was not measured, why, and what would help."""

    contender: str
    reason: str
    install: str


@dataclass(frozen=True)
class BenchResult:
    """Everything one benchmark measured.

    Attributes:
        command: what reproduces it.
        model: the name of what was measured.
        model_sha256: of its tensors, as in the manifests of bundles that were compiled from it.
        threads: of each contender.
        rounds: for each input.
        matrix_rates: multiply-adds a second of this machine's own matrix product in onnxruntime, by precision.
        fidelity: what the routed model keeps of the dense one, where that was measured when it was routed.
    """

    command: str
    model: str
    model_sha256: str
    machine: Machine
    threads: int
    rounds: int
    matrix_rates: dict[str, float]
    measurements: tuple[Measurement, ...]
    bounds: tuple[Bound, ...]
    skipped: tuple[Skipped, ...]
    fidelity: Fidelity | None = None
    schema_version: int = SCHEMA_VERSION

    def dump(self) -> str:
        """JSON text."""
        return record_json(self)


def read_result(path: Path) -> BenchResult:
    """Read what ``coda-compile bench --json`` wrote.

    Raises:
        CodaError: no such file, not JSON, of another version, or without measurements.
    """
    if not path.exists():
        raise CodaError(f"{path} does not exist: make it with coda-compile bench MODEL --json {path}")
    result = read_record(path, BenchResult, what="benchmark result", remedy="measure again", version=SCHEMA_VERSION)
    if not result.measurements:
        raise CodaError(f"{path} holds no measurements: measure again")
    return result
