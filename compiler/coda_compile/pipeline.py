"""compile(): the whole story on one page."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from coda_compile.backends import Backend
from coda_compile.bundling.package import write_package
from coda_compile.bundling.replace_folder import replacing
from coda_compile.bundling.variant import BuiltVariant
from coda_compile.bundling.writer import check_output
from coda_compile.errors import OptionError, as_sentences
from coda_compile.export import save_onnx
from coda_compile.options import CompileOptions
from coda_compile.passes import run_passes
from coda_compile.precision import Precision
from coda_compile.sources import read
from coda_compile.sources.compilable import Compilable
from coda_models.model import CodaModel
from coda_targets import Bundle
from coda_targets.bundle import MODEL

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
        options: how; see ``CompileOptions``.
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
    if len(variants) > 1:
        raise OptionError("a bundle holds one variant: give one {target} and one {precision}")
    check_output(output)
    with stage("load"):
        source = read(model, options)
    pruning = None
    if options.prune_gates is not None:
        with stage("prune"):
            pruning = source.prune(options.prune_gates, options.calibration)
    with replacing(output, stage) as folder:
        built: list[BuiltVariant] = []
        for backend, precision in variants:
            own = source if len(variants) == 1 else source.copy()
            place = folder if not built else folder / f"{backend.name}-{precision.name}"
            built.append(_build(own, backend, precision, options, tasks, place, output, stage))
        with stage("bundle"):
            write_package(folder, built, source, pruning)
        check_output(output)  # again: minutes have passed
    return Bundle(output)


def _build(
    source: Compilable,
    backend: Backend,
    precision: Precision,
    options: CompileOptions,
    tasks: Sequence[str] | None,
    folder: Path,
    output: Path,
    stage: Stage,
) -> BuiltVariant:
    """Compile one variant and verify it.

    Args:
        source: changed in place.
        tasks: names of those that share a backbone.
        folder: that the variant is written into.
        output: of the whole bundle; a failed verification is kept beside it.
    """
    if precision.quantise is not None:
        with stage("quantise"):
            source.quantise(precision, options.calibration)
    if options.ood is not None:
        with stage("ood"):
            source.fit_ood(options.ood, options.ood_files(tasks))
    with stage("export"):
        compiled = source.export(backend.opset)
    with stage("passes"):
        passes = run_passes(compiled, backend.passes(pack=options.pack))
        backend.check(compiled)
        source.finish(compiled)
    folder.mkdir(exist_ok=True)
    save_onnx(compiled, folder / MODEL)
    with stage("verify"):
        verified = source.verify(folder / MODEL, backend, precision, output)
    said = source.describe(), passes, verified, source.tasks()
    return BuiltVariant(backend, precision, folder / MODEL, compiled, *said)
