"""compile(): read a source, prepare, export, run passes, verify, write a bundle."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import onnx_ir as ir

from coda_compile.backends import Backend
from coda_compile.bundling.package import BuiltVariant, CompiledVariant, save_variants, write_package
from coda_compile.bundling.replace_folder import replacing
from coda_compile.bundling.weights import ModelFile
from coda_compile.bundling.writer import check_output, write_config, write_tokenizer
from coda_compile.errors import as_sentences
from coda_compile.options import CompileOptions
from coda_compile.passes import run_passes
from coda_compile.precision import Precision
from coda_compile.prepare.pruning import Pruning
from coda_compile.sources import read
from coda_compile.sources.compilable import Compilable
from coda_models.model import CodaModel
from coda_targets import Bundle
from coda_targets.proofs import PARITY, ProofInfo
from coda_targets.runtimes.session import place
from coda_targets.signature import Signature

Stage = Callable[[str], AbstractContextManager[object]]
_DEFAULTS = CompileOptions()


@as_sentences()
def compile(
    model: CodaModel | Path | str | Mapping[str, CodaModel | Path | str],
    options: CompileOptions = _DEFAULTS,
    *,
    output: Path | str,
    stage: Stage = nullcontext,
) -> Bundle:
    """Turn a trained model into a verified bundle.

    Args:
        model: a model in memory, or a path that ``coda_compile.sources.read_source`` knows, or an ONNX file of another
            exporter; or, by the names of their tasks, several models that share a backbone.
        options: how; see ``CompileOptions``. Every target with every precision becomes a variant.
        output: the bundle's folder; an older bundle there is replaced, anything else is refused.
        stage: called with each stage's name, gives a context that lasts as long as the stage.

    Returns:
        The bundle, opened.

    Raises:
        CodaError: one sentence that says what was wrong. Nothing is left behind, but for a folder
            ``<output>-failed`` that reproduces a failed verification.
    """
    output = Path(output).resolve()
    tasks = tuple(model) if isinstance(model, Mapping) else None
    options.check(tasks)
    variants = options.variants()
    check_output(output)
    with stage("load"):
        source = read(model, options)
    pruning = None
    if options.prune_gates is not None:
        with stage("prune"):
            pruning = source.prune(options.prune_gates, options.calibration)
    fitted_on = options.ood_files(tasks)
    signature, profile = source.describe().signature, options.sizes
    variants = tuple((backend.sized(profile, signature), precision) for backend, precision in variants)
    sources = _by_precision(source, [precision for _, precision in variants])
    for precision, own in sources.items():
        _prepare(own, precision, options, fitted_on, stage)
    compiled = _compile(sources, variants, options, stage)
    with replacing(output, stage) as folder:
        built = []
        for variant, (backend, precision), file in zip(
            compiled, variants, save_variants(folder, compiled), strict=True
        ):
            with stage("verify"):
                built.append(_prove(sources[precision], variant, backend, precision, signature, file, output))
        with stage("bundle"):
            _write(folder, source, built, pruning)
        check_output(output)  # again: minutes have passed
    return Bundle(output)


def _by_precision(source: Compilable, precisions: Sequence[Precision]) -> dict[Precision, Compilable]:
    """For each precision the model that its variants share: the first has the source, each other one a copy."""
    first, *others = dict.fromkeys(precisions)
    return {first: source, **{precision: source.copy() for precision in others}}


def _prepare(
    source: Compilable,
    precision: Precision,
    options: CompileOptions,
    fitted_on: Mapping[str, Path],
    stage: Stage,
) -> None:
    """Make of a source, in place, what is exported in a precision.

    Args:
        fitted_on: for each task what its out-of-distribution score is fitted on; a single model has no name.
    """
    if precision.quantise is not None:
        with stage("quantise"):
            source.quantise(precision, options.calibration)
    if options.ood is not None:
        with stage("ood"):
            source.fit_ood(options.ood, fitted_on)


def _compile(
    sources: Mapping[Precision, Compilable],
    variants: Sequence[tuple[Backend, Precision]],
    options: CompileOptions,
    stage: Stage,
) -> list[CompiledVariant]:
    """Compile every variant; those of one precision and opset begin with copies of one export."""
    exported: dict[tuple[Precision, int], ir.Model] = {}
    compiled = []
    for backend, precision in variants:
        source, key = sources[precision], (precision, backend.opset)
        if key not in exported:
            with stage("export"):
                exported[key] = source.export(backend.opset)
        graph = exported[key].clone()  # of nodes; the tensors stay those of the source
        with stage("passes"):
            passes = run_passes(graph, backend.passes(pack=options.pack, half=precision.half))
            backend.check(graph)
            source.finish(graph)
        compiled.append(CompiledVariant(backend.runtime, precision.name, graph, passes))
    return compiled


def _prove(
    source: Compilable,
    variant: CompiledVariant,
    backend: Backend,
    precision: Precision,
    signature: Signature,
    file: ModelFile,
    output: Path,
) -> BuiltVariant:
    """Verify one variant as it was written, where it can run here, and note where that was."""
    verified = source.verify(file.path, backend, precision, output)
    parity = ProofInfo(PARITY, place(backend.verified_on().runtime))
    return BuiltVariant(variant, file, verified, (parity, *backend.prove(file.path, signature)))


def _write(folder: Path, source: Compilable, variants: list[BuiltVariant], pruning: Pruning | None) -> None:
    """Complete a bundle whose models are there.

    Args:
        source: of the first variant.
    """
    described = source.describe()
    write_config(folder, described.config)
    if source.tokenizer is not None:
        write_tokenizer(folder, source.tokenizer, described.signature)
        source.write_modules(folder)
    write_package(folder, described, variants, source.tasks(), pruning)
