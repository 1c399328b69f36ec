"""Results of the gate made up without a clock, and bundles changed in a way that their manifests admit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coda_compile.bench.machine import Machine
from coda_compile.regression.ab import Launch, Timing, decide
from coda_compile.regression.check import CheckResult, advise, explain_timing
from coda_compile.regression.facts import Difference, Facts
from coda_compile.regression.verdict import Verdict
from coda_targets.bundle_files import list_files
from coda_targets.manifest import MANIFEST, read_manifest

MACHINE = Machine("A CPU", 4, ("avx2",), 1 << 33, None, "Linux x86_64", "3.11.7", {"onnxruntime": "1.32.0"}, "native")
FACTS = Facts(1_000_000, 2_000_000, {"MatMul": 8, "com.microsoft::BiasGelu": 2}, {"CPU": 10}, "CPU")


def launches(count: int, *, ratio: float = 1.0, shift: float = 0.01, seed: int = 0) -> list[Launch]:
    """Launches whose processes are each shifted by a normal logarithm of deviation ``shift``."""
    a, again, b = np.random.default_rng(seed).normal(0, shift, (3, count))
    changes = np.log(ratio) + b - (a + again) / 2
    return [
        Launch(float(change), float(itself), 0.1, 0.1 * ratio, 20)
        for change, itself in zip(changes, again - a, strict=True)
    ]


def timing(given: Sequence[Launch], *, by: float = 0.05, **changes: Any) -> Timing:
    """What a measurement of these launches would be."""
    made = Timing(decide(given, by=by, most=32), by, tuple(given), 32, 300.0, 61.2, 1, 128, 2, 0.1)
    return replace(made, **changes)


def timed(measured: Timing) -> CheckResult:
    """The result of a measurement."""
    return CheckResult(
        verdict=measured.estimate.verdict,
        reason=explain_timing(measured),
        advice=advise(measured, MACHINE, 512),
        bundle="new",
        baseline="old",
        by=measured.by,
        differences=(Difference("operators", "MatMul 8", "MatMul 9", regression=False),),
        facts=FACTS,
        baseline_facts=FACTS,
        timing=measured,
        machine=MACHINE,
    )


def untimed() -> CheckResult:
    """The result of a fusion that was lost."""
    lost = Difference("fused com.microsoft::BiasGelu", "2", "1", regression=True)
    return replace(
        timed(timing(launches(8))),
        verdict=Verdict.REGRESSION,
        reason=str(lost),
        advice=(),
        differences=(lost,),
        timing=None,
    )


def rewrite(folder: Path, **changes: Any) -> Path:
    """Write a bundle's manifest anew: with changes, and with the files as they are now."""
    manifest = replace(read_manifest(folder), files=list_files(folder), **changes)
    (folder / MANIFEST).write_text(manifest.dump(), "utf-8")
    return folder
