"""A benchmark result made up for tests: three dense contenders, two lengths, two r, and names that want escaping."""

from collections.abc import Sequence

from tests.conftest import tiny_coda

from coda_compile.bench.machine import Machine, this_machine
from coda_compile.bench.result import BenchResult, Bound, Measurement, Skipped
from coda_compile.bundling.writer import model_digest
from coda_compile.statistics import ratio_interval, summarise
from coda_models import CodaConfig

NOISE = (0.99, 1.0, 1.02, 0.98, 1.01, 1.0, 1.03, 0.97)
DENSE = {
    "torch eager": ("fp32", 1.4, 540, 93),
    "torch.compile": ("fp32", 1.15, 610, 93),
    "onnxruntime": ("fp32", 1.0, 260, 91),
    "optimum int8": ("int8", 0.62, 150, 24),
}
RATIOS = {"2": (1.9, 2.1), "4": (3.3, 4.3)}  # bounds at the two lengths


def made_up(
    *, reductions: Sequence[str] = ("2", "4"), tokens: Sequence[int] = (128, 512), machine: Machine | None = None
) -> BenchResult:
    """A result whose compiled models reach 65 % of the bound."""
    measurements, bounds = [], []
    for i, length in enumerate(tokens):
        dense_seconds = 0.3 * length / 512
        compiled = {r: [dense_seconds / (0.65 * RATIOS[r][i]) * x for x in NOISE] for r in reductions}
        dense = {
            name: [dense_seconds * factor * x for x in reversed(NOISE)] for name, (_, factor, _, _) in DENSE.items()
        }
        for r, seconds in compiled.items():
            measurements.append(_measurement(f"coda-compile r={r}", "fp32", r, length, seconds, {}, 270, 92))
            bounds.append(Bound(r, 1, length, RATIOS[r][i], 0.65, 0.5))
        for name, seconds in dense.items():
            precision, _, peak, size = DENSE[name]
            measurements.append(_measurement(name, precision, "1", length, seconds, compiled, peak, size))
    return BenchResult(
        command="coda-compile bench 'my model.pt' --json bench.json",
        model="my model.pt",
        model_sha256=model_digest(tiny_coda("bert", CodaConfig(reduction=2))),  # which ``compiled`` was made from
        machine=machine or this_machine(),
        threads=2,
        rounds=len(NOISE),
        matrix_rates={"fp32": 5e10},
        measurements=tuple(measurements),
        bounds=tuple(bounds),
        skipped=(Skipped("OpenVINO", "openvino is not installed", 'pip install "coda-compile[openvino]"'),),
    )


def _measurement(
    name: str,
    precision: str,
    r: str,
    tokens: int,
    seconds: list[float],
    compiled: dict[str, list[float]],
    peak: int,
    size: int,
) -> Measurement:
    summary = summarise(seconds)
    return Measurement(
        contender=name,
        precision=precision,
        reduction=r,
        batch=1,
        tokens=tokens,
        seconds=tuple(seconds),
        rounds=tuple(seconds),
        summary=summary,
        tokens_per_second=tokens / summary.median,
        speed_up={r: ratio_interval(seconds, own) for r, own in compiled.items()},
        first_seconds=2 * summary.median,
        opened_seconds=0.4,
        peak_bytes=peak * 10**6,
        file_bytes=size * 10**6,
        multiply_adds=10**9,
    )
