"""compile(): the whole story on one page."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from coda_compile.backends import Backend, ready_backend
from coda_compile.bundling import sentence_folder, tasks
from coda_compile.bundling.package import BuiltVariant, CompiledVariant, save_variants, write_package
from coda_compile.bundling.writer import (
    check_output,
    describe,
    label_names,
    logits_of,
    model_digest,
    replacing,
    write_config,
    write_tokenizer,
)
from coda_compile.compile_graph import compile_graph
from coda_compile.errors import CompileError, VerificationError, as_sentences
from coda_compile.export import export
from coda_compile.passes import run_passes
from coda_compile.precision import UNQUANTISED, get_precision
from coda_compile.prepare import calibration as calibrating
from coda_compile.prepare.fit_ood import check as check_ood
from coda_compile.prepare.fit_ood import files as ood_files
from coda_compile.prepare.fit_ood import fit as fit_ood
from coda_compile.prepare.prune_slots import prune_slots
from coda_compile.sources import Source, find_onnx, read_source
from coda_compile.sources.classes import set_classes
from coda_compile.sources.truncation import longest
from coda_compile.verify.against_torch import elsewhere, expected, verify
from coda_compile.verify.cases import kept_case
from coda_compile.verify.kernels import of_kernels
from coda_compile.verify.parity import CaseParity, Tolerances
from coda_compile.verify.reference_vectors import ReferenceVectors
from coda_compile.verify.reproduction import failure_folder, keep_failure
from coda_models.config import Reduction
from coda_models.model import CodaModel
from coda_targets import Bundle, TargetError
from coda_targets.runtimes import DEFAULT_TARGET
from coda_targets.task_adapters import Adapter

Stage = Callable[[str], AbstractContextManager[object]]


@as_sentences()
def compile(
    model: CodaModel | Path | str | Mapping[str, CodaModel | Path | str],
    target: Backend | str = DEFAULT_TARGET,
    *,
    output: Path | str,
    backbone: Path | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    problem_type: str | None = None,
    labels: Sequence[str] | None = None,
    reduction: Reduction | Sequence[Reduction] | None = None,
    precision: str = UNQUANTISED,
    calibration: calibrating.Calibration | None = None,
    prune_gates: float | None = None,
    pack: bool = False,
    ood: str | None = None,
    ood_data: Path | str | Mapping[str, Path | str] | None = None,
    stage: Stage = nullcontext,
) -> Bundle:
    """Turn a trained model into a verified bundle.

    Args:
        model: a model in memory, or a path that ``coda_compile.sources.read_source`` knows; or, by the names of their
            tasks, several that share a backbone.
        target: where it will run, one of ``coda_compile.backends.backend_names()``, or a backend itself.
        output: the bundle's folder; an older bundle there is replaced, anything else is refused.
        backbone: folder or hub name of a delta's backbone, by default what the delta names.
        tokenizer: put into the bundle instead of the source's own; texts are cut where either says.
        problem_type: what a text classifier's logits stand for, one of ``sources.classes.PROBLEM_TYPES``, where its
            source does not say so, as adapters of PEFT do not.
        labels: names of a classifier's classes in order of the logits, by default the source's.
        reduction: run at another r than the model was trained with; 1 is the dense adapter.
        precision: of the frozen layers' linear layers, one of ``coda_compile.precision.precision_names()`` that the
            target has.
        calibration: for ``prune_gates``, and for precisions that are calibrated, texts like those to come: a CSV file
            with the column ``text``, or the model's inputs by name, batch by batch without padding.
        prune_gates: take away slots whose gates stay under this in all of those texts.
        pack: multiply the tokens that are really there alone, for batches of texts of different lengths.
        ood: score how far out a text is, by one of ``coda_models.ood.METHODS``: outputs ``ood_score`` and ``is_ood``.
        ood_data: CSV file with the columns ``text`` and ``label`` of texts that the model is meant for; of several, one
            for each by its name.
        stage: called with each stage's name, gives a context that lasts as long as the stage.

    Returns:
        The bundle, opened.

    Raises:
        CodaError: one sentence that says what was wrong. Nothing is left behind, but for a folder
            ``<output>-failed`` that reproduces a failed verification.
    """
    output = Path(output).resolve()
    backend = ready_backend(target)
    if precision not in backend.precisions:
        known = ", ".join(backend.precisions)
        raise TargetError(f"target {backend.name!r} has no precision {precision!r}: use one of {known}")
    recipe = get_precision(precision)
    graph = None if isinstance(model, CodaModel | Mapping) else find_onnx(Path(model))
    several = isinstance(model, Mapping)
    calibrating.check(calibration, recipe, several=several, pruned=prune_gates is not None)
    if graph is not None:
        pruned = {"prune-gates": prune_gates is not None}
        _only_unquantised(
            graph, backbone=backbone, reduction=reduction, precision=recipe.quantise is not None, pack=pack, **pruned
        )
        check_output(output)
        data = ood_files(ood_data, [""]).get("")
        return compile_graph(
            graph,
            backend,
            output=output,
            tokenizer=tokenizer,
            problem_type=problem_type,
            labels=labels,
            ood=ood,
            ood_data=data,
            stage=stage,
        )
    if several and (problem_type is not None or labels is not None):
        raise CompileError("problem_type and labels are one model's: set them in each model before it is saved")
    if several and not backend.swaps_tasks:
        raise TargetError(
            f"target {backend.name!r} cannot swap tasks: compile each by itself, or use --target {DEFAULT_TARGET}"
        )
    if pack and not backend.packs_rows:
        raise TargetError(f"target {backend.name!r} packs no rows: leave out --pack")
    check_output(output)
    with stage("load"):
        sources = _sources(model, backbone)
        for each in sources.values():
            set_classes(each.model, problem_type, labels)
            if reduction is not None:
                _run_at(each.model, reduction)
            check_ood(ood, ood_data, each.model.coda_config.task, logits_of(each.model), label_names(each.model))
        fitted_on = ood_files(ood_data, list(sources))
        source = next(iter(sources.values()))
        words = tokenizer or source.tokenizer
        for each in sources.values():
            each.model.signature = longest(each.model.signature, words)
        if several:
            tasks.check({name: each.model for name, each in sources.items()})
    digest = model_digest(source.model)
    pruning = None
    if prune_gates is not None:
        with stage("prune"):
            texts = calibrating.inputs(calibration, words, source.model.signature)
            pruning = prune_slots(source.model, prune_gates, texts)
    if recipe.quantise is not None:
        with stage("quantise"):
            for each in sources.values():
                given = calibrating.inputs(calibration if recipe.calibrated else None, words, each.model.signature)
                recipe.quantise(each.model, given, not several)
    if ood is not None:
        with stage("ood"):
            for name, labelled in fitted_on.items():
                sources[name].model.ood = fit_ood(sources[name].model, words, ood, labelled)
    with stage("export"):
        compiled = export(source.model, backend.opset)
    with stage("passes"):
        passes = run_passes(compiled, backend.passes(pack=pack))
        backend.check(compiled)
        if several:
            tasks.make_swappable(compiled, source.model)
    variant = CompiledVariant(backend.runtime, precision, compiled, passes)
    with replacing(output, stage) as folder:
        (file,) = save_variants(folder, [variant])
        tolerances = Tolerances()
        with stage("verify"):
            parity, adapters = {}, dict[str, Path | None]()
            for name, each in sources.items():
                adapters[name] = swapped = tasks.write(folder, name, each.model) if several else None
                parity[name] = verify_or_keep(each.model, file.path, backend, tolerances, output, swapped)
        with stage("bundle"):
            described = describe(source.model, digest)
            case, vectors = kept_case(source.model.signature), {}
            mask = source.model.signature.mask(case.inputs)
            for name, each in sources.items():
                answers = expected(each.model, file.path, case, backend, _opened(adapters[name]))
                allowed = elsewhere(each.model, case, parity[name], recipe.elsewhere)
                vectors["" if each is source else name] = ReferenceVectors(case.inputs, mask, *answers, allowed)
            write_config(folder, described.config)
            if words is not None:
                write_tokenizer(folder, words, source.model.signature)
                sentence_folder.write(folder, source.model, source.about)
            infos = [tasks.info(name, each.model) for name, each in sources.items() if several]
            built = BuiltVariant(variant, file, parity, tolerances, vectors)
            write_package(folder, described, [built], infos, pruning)
        check_output(output)  # again: minutes have passed
    return Bundle(output)


def verify_or_keep(
    model: CodaModel, path: Path, backend: Backend, tolerances: Tolerances, output: Path, swapped: Path | None
) -> list[CaseParity]:
    """Compare a model with what was compiled of it, and keep beside ``output`` what reproduces a failure.

    Function bodies are what the bundle carries, and what is reported. Where native kernels are built they have to give
    the same.
    """
    failed = failure_folder(output)

    def run(on: Backend) -> list[CaseParity]:
        return verify(
            model,
            path,
            on,
            tolerances=tolerances,
            adapter=_opened(swapped),
            on_failure=lambda case, expected, actual: keep_failure(
                failed, path, case.inputs, expected, actual, adapter=swapped, runtime=on.runtime
            ),
        )

    try:
        parity, kernels = run(backend.verified_on()), backend.with_kernels()
        if kernels is not None:
            with of_kernels():
                run(kernels)
    except VerificationError as error:
        raise VerificationError(f"{error}; reproduction in {failed}") from None
    return parity


def _opened(adapter: Path | None) -> Adapter | None:
    return None if adapter is None else Adapter(adapter)


def _only_unquantised(graph: Path, **options: object) -> None:
    """Refuse what takes more than a graph tells."""
    asked = next((name for name, value in options.items() if value), None)
    if asked is not None:
        raise CompileError(
            f"{graph} is an ONNX file and compiles as it is, in {UNQUANTISED}: "
            f"for --{asked} give the model it was exported from"
        )


def _sources(
    model: CodaModel | Path | str | Mapping[str, CodaModel | Path | str], backbone: Path | str | None
) -> dict[str, Source]:
    """Models by their tasks; a single one has no name."""
    if not isinstance(model, Mapping):
        return {"": read_model(model, backbone)}
    if not model:
        raise CompileError("there is no model to compile: give one or more")
    return {tasks.check_name(name): read_model(one, backbone) for name, one in model.items()}


def read_model(model: CodaModel | Path | str, backbone: Path | str | None) -> Source:
    """What a caller gave, ready to export."""
    if isinstance(model, CodaModel):
        return Source("model in memory", deepcopy(model).eval(), None)  # the caller's keeps its mode and reduction
    return read_source(Path(model), backbone=None if backbone is None else str(backbone))


def _run_at(model: CodaModel, reduction: Reduction | Sequence[Reduction]) -> None:
    model.set_reduction(reduction)
    asked = model.coda_config.reduction
    if asked not in (1, (1,) * len(model.layers)) and all(layer.router is None for layer in model.coda_layers()):
        raise CompileError("this model has no routers, so it runs at reduction 1 only: train a CoDA model from it")
