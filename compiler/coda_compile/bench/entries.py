"""Who takes part in a benchmark: compiled models, the dense model in other runtimes, and who cannot."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.bench.plan import Plan, usual_precisions
from coda_compile.bench.result import Skipped, variant_of
from coda_compile.bench.turns import Contender, calibration_inputs
from coda_compile.precision import get_precision
from coda_targets import Bundle, get_runtime
from coda_targets.manifest import Manifest
from coda_targets.runtimes import DEFAULT_TARGET, GPU

if TYPE_CHECKING:
    from coda_compile.bench.baselines import DenseAdapter
    from coda_models import CodaModel

COMPILED = "coda-compile"
DENSE = "dense, compiled here"
GRAPH = "CUDA graph"
Stage = Callable[[str], AbstractContextManager[object]]


@dataclass
class Entry:
    """One contender, and what tables say of it."""

    contender: Contender
    precision: str
    reduction: str
    file_bytes: int
    target: str = DEFAULT_TARGET
    manifest: Manifest | None = None  # of a compiled one
    form: str = ""


@dataclass
class Entries:
    """Everyone who takes part, and everyone who cannot."""

    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        """Of the first compiled model: the sizes that all share."""
        return next(entry.manifest for entry in self.entries if entry.manifest is not None)

    def add_bundle(self, bundle: Bundle) -> None:
        """A compiled model, named after its r and precision; on a GPU once more as CUDA graphs."""
        reduction = reduction_of(bundle.manifest)
        precision, target = bundle.variant.precision, bundle.variant.target
        for form in _forms(target):
            name = f"{COMPILED} r={variant_of(reduction, precision, target, form)}"
            contender = Contender.of_bundle(name, bundle, cuda_graph=form == GRAPH)
            size = bundle.model_bytes
            self.entries.append(Entry(contender, precision, reduction, size, target, bundle.manifest, form))

    def add_dense(self, model: "CodaModel", folder: Path, plan: Plan, device: str, stage: Stage) -> None:
        """The dense model in every runtime of a device that is installed; on a GPU also as it is compiled here, which
        is the bar there."""
        from coda_compile.bench.baselines import BASELINES, UNMEASURED, DenseAdapter, build_baseline

        dense = DenseAdapter(model, folder)
        if device == GPU:
            self._add_compiled(dense, plan, stage)
            self.skipped += UNMEASURED
        precisions = plan.precisions or usual_precisions(device)
        for baseline in BASELINES:
            if baseline.device != device or baseline.name in plan.skip:
                continue
            if device != GPU and _bits(baseline.precision) not in map(_bits, precisions):
                continue
            with stage(baseline.name):
                built = build_baseline(baseline, dense)
            if isinstance(built, Skipped):
                self.skipped.append(built)
            else:
                self.entries.append(Entry(built[0], baseline.precision, "1", built[1]))

    def _add_compiled(self, dense: "DenseAdapter", plan: Plan, stage: Stage) -> None:
        """The dense model for each target and precision of the compiled models."""
        from coda_compile.options import CompileOptions
        from coda_compile.pipeline import compile

        kinds = dict.fromkeys((entry.target, entry.precision) for entry in self.entries)
        for target, precision in kinds if DENSE not in plan.skip else ():
            name = f"{DENSE} {precision} {target}"
            calibration = calibration_inputs(dense.model.signature) if get_precision(precision).calibrated else None
            options = CompileOptions(target=target, precision=precision, calibration=calibration)
            with stage(name):
                bundle = compile(dense.model, options, output=dense.folder / f"{precision}-{target}")
            for form in _forms(target):
                contender = Contender.of_bundle(f"{name} {form}".strip(), bundle, cuda_graph=form == GRAPH)
                self.entries.append(Entry(contender, precision, "1", bundle.model_bytes))


def reduction_of(manifest: Manifest) -> str:
    """r of a compiled model in text; one a layer, with commas, where they differ; 1 where its layers are not known."""
    each = [layer.reduction for layer in manifest.layers] or ["1"]
    return each[0] if len(set(each)) == 1 else ",".join(each)


def _bits(precision: str) -> int:
    return get_precision(precision).bits


def _forms(target: str) -> tuple[str, ...]:
    """How a target's sessions can run."""
    return ("", GRAPH) if get_runtime(target).captures else ("",)
