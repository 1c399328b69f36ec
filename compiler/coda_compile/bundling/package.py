"""Write a bundle of one variant or several; the same inputs give the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from coda_compile.bundling import weights
from coda_compile.bundling.build_report import BuildReport, PassReport, VariantReport, write_report
from coda_compile.bundling.ort_manifest import ort_manifest
from coda_compile.bundling.weights import ModelFile
from coda_compile.bundling.writer import Described
from coda_compile.errors import CompileError
from coda_compile.passes import operator_counts
from coda_compile.precision import UNQUANTISED, get_precision
from coda_compile.prepare.pruning import Pruning
from coda_compile.verify import reference_vectors
from coda_compile.verify.on_target import Verified
from coda_compile.verify.parity import Tolerances
from coda_ops import RUNTIME_DOMAIN
from coda_ops.distributions import installed_version
from coda_targets import Runtime, get_runtime
from coda_targets.bundle_files import list_files
from coda_targets.manifest import (
    MANIFEST,
    MODEL,
    PACKAGE,
    PART,
    Manifest,
    SessionInfo,
    TaskInfo,
    TensorInfo,
    VariantInfo,
    release,
)
from coda_targets.proofs import ProofInfo
from coda_targets.runtimes import DEFAULT_TARGET

_PACKAGES = ("coda-compile", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "transformers")
# First onnxruntime release for each opset and IR version, from its own table of compatibility.
_RUNTIME_OF_OPSET = {18: "1.14", 19: "1.16", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}
NEWEST_OPSET = max(_RUNTIME_OF_OPSET)
_RUNTIME_OF_IR = {8: "1.14", 9: "1.16", 10: "1.18", 11: "1.22"}
_RUNTIME_OF_ADAPTERS = "1.20"  # the first with its own adapter format
_RUNTIME_OF_ATTENTION = "1.21.1"  # before, MultiHeadAttention misread one bias for all heads from the second text on


@dataclass(frozen=True)
class CompiledVariant:
    """The model as it was compiled for a target in a precision, before anything of it is written."""

    runtime: Runtime
    precision: str
    model: ir.Model
    passes: list[PassReport]

    @property
    def name(self) -> str:
        """As in both manifests."""
        return self.runtime.name if self.precision == UNQUANTISED else f"{self.runtime.name}-{self.precision}"


@dataclass(frozen=True)
class BuiltVariant:
    """A variant that was written and verified, with the proof.

    Attributes:
        file: what was verified.
        verified: what was proved, by task; a single one has no name.
        proofs: where that was, and what else was shown.
    """

    compiled: CompiledVariant
    file: ModelFile
    verified: Mapping[str, Verified]
    proofs: tuple[ProofInfo, ...]


def save_variants(folder: Path, variants: Sequence[CompiledVariant]) -> list[ModelFile]:
    """Write the ONNX files of a bundle, which then are verified as they are.

    ``model.onnx`` is the first variant that plain onnxruntime runs on a CPU, or the first where none does.

    Returns:
        What was written, variant by variant.
    """
    plain = get_runtime(DEFAULT_TARGET).preferred
    default = next((one.name for one in variants if one.runtime.preferred == plain), variants[0].name)
    files = [MODEL if variant.name == default else f"model-{variant.name}.onnx" for variant in variants]
    return weights.save_models(folder, dict(zip(files, (variant.model for variant in variants), strict=True)))


def write_package(
    folder: Path,
    described: Described,
    variants: Sequence[BuiltVariant],
    tasks: Sequence[TaskInfo] = (),
    pruning: Pruning | None = None,
) -> None:
    """Write what proves the variants and what lists them.

    The folder has all other files already. Last comes coda.json: it hashes them.

    Raises:
        CompileError: variants whose outputs differ.
    """
    infos = [_variant_info(one, swapped=bool(tasks)) for one in variants]
    for info, one in zip(infos, variants, strict=True):
        for i, (task, proved) in enumerate(one.verified.items()):  # the first task is what the model itself holds
            place = reference_vectors.place_of(folder, info)
            reference_vectors.write(place, proved.vectors, task=task if i else "")
    reports = {one.compiled.name: _report(one) for one in variants}
    write_report(folder, BuildReport(pruning, reports))
    listed = [(info, one.compiled.runtime) for info, one in zip(infos, variants, strict=True)]
    (folder / PACKAGE).write_text(ort_manifest(listed), "utf-8")
    manifest = _manifest(folder, described, variants, infos, tasks)
    (folder / MANIFEST).write_text(manifest.dump(), "utf-8")


def _report(built: BuiltVariant) -> VariantReport:
    parity = {task: proved.parity for task, proved in built.verified.items()}
    tolerances = get_precision(built.compiled.precision).tolerances or Tolerances()
    return VariantReport.of(built.compiled.passes, parity, tolerances)


def _manifest(
    folder: Path,
    model: Described,
    variants: Sequence[BuiltVariant],
    infos: Sequence[VariantInfo],
    tasks: Sequence[TaskInfo],
) -> Manifest:
    outputs = _outputs(variants[0].compiled.model)
    for other in variants[1:]:
        if _outputs(other.compiled.model) != outputs:
            raise CompileError(f"{infos[0].name} and {other.compiled.name} have different outputs")
    needed = {name for one in variants for name in one.compiled.runtime.distributions}
    return Manifest(
        task=model.task,
        architecture=model.architecture,
        versions=_versions((*_PACKAGES, *needed)),
        variants=tuple(infos),
        signature=model.signature,
        outputs=outputs,
        width=model.width,
        feed_forward=model.feed_forward,
        labels=model.labels,
        logits=model.logits,
        model_sha256=model.model_sha256,
        layers=model.layers,
        coda_config=model.coda_config,
        ood=model.ood,
        fidelity=model.fidelity,
        tasks=tuple(tasks),
        files=list_files(folder),
    )


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Of the packages that are here: what only runs a model need not be where it is compiled."""
    return {name: found.split("+")[0] for name in packages if (found := installed_version(name))}


def _variant_info(built: BuiltVariant, *, swapped: bool) -> VariantInfo:
    """Args: swapped: whether tasks are swapped in."""
    compiled, runtime = built.compiled, built.compiled.runtime
    return VariantInfo(
        name=compiled.name,
        target=runtime.name,
        precision=compiled.precision,
        models={PART: built.file.path.name},
        external_bytes=built.file.external_bytes,
        opset=dict(sorted(compiled.model.opset_imports.items())),
        ir_version=compiled.model.ir_version,
        minimum_onnxruntime=_minimum_runtime(compiled.model, swapped=swapped, runtime=runtime),
        operators=dict(sorted(operator_counts(compiled.model).items())),
        session=SessionInfo(
            tuple(name for name, _ in runtime.providers),
            runtime.graph_level,
            runtime.threads,
            runtime.kernels,
            runtime.options,
            runtime.profile,
        ),
        proofs=built.proofs,
    )


def _minimum_runtime(compiled: ir.Model, *, swapped: bool = False, runtime: Runtime | None = None) -> str:
    needed = [_RUNTIME_OF_OPSET[compiled.opset_imports[""]], _RUNTIME_OF_IR[compiled.ir_version]]
    if RUNTIME_DOMAIN in compiled.opset_imports:
        needed.append(_RUNTIME_OF_ATTENTION)
    if swapped:
        needed.append(_RUNTIME_OF_ADAPTERS)
    if runtime is not None and runtime.minimum_onnxruntime:
        needed.append(runtime.minimum_onnxruntime)
    return max(needed, key=release)


def _outputs(model: ir.Model) -> tuple[TensorInfo, ...]:
    return tuple(_tensor_info(value) for value in model.graph.outputs)


def _tensor_info(value: ir.Value) -> TensorInfo:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorInfo(value.name, str(value.dtype.numpy()), shape)
