"""bench(): the compiled model against the dense model in every common runtime."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.bench.entries import Entries, Entry, Stage
from coda_compile.bench.machine import this_machine, thread_count
from coda_compile.bench.matrix import matrix_rates
from coda_compile.bench.plan import Plan, cases, device_of, usual_precisions
from coda_compile.bench.result import BenchResult, Bound, Measurement, Skipped, variant_of
from coda_compile.bench.turns import MeasuringError, Timings, calibration_inputs, in_turns
from coda_compile.errors import CodaError, as_sentences
from coda_compile.inspect.cost import dense_multiply_adds, multiply_adds
from coda_compile.precision import UNQUANTISED, get_precision
from coda_compile.statistics import ratio_interval, summarise
from coda_ops.files import private_folder
from coda_targets import Bundle, TargetError
from coda_targets.fidelity import Fidelity
from coda_targets.runtimes import DEFAULT_TARGET, GPU

if TYPE_CHECKING:
    from coda_models import CodaModel

REFERENCE = "onnxruntime"  # the dense baseline whose distance the multiply-adds bound speaks of
_DEFAULTS = Plan()


@as_sentences()
def bench(
    model: "CodaModel | Bundle",
    *,
    dense: "CodaModel | None" = None,
    fidelity: Fidelity | None = None,
    plan: Plan = _DEFAULTS,
    name: str = "model",
    command: str = "",
    stage: Stage = nullcontext,
    on_round: Callable[[], None] = lambda: None,
) -> BenchResult:
    """Measure a compiled model and the dense model of the same checkpoint, on the same inputs, in turns.

    Args:
        model: to compile at each r of the plan, or a bundle to measure as it is.
        dense: what the dense baselines are made from; by default ``model``, and none beside a bundle.
        fidelity: what ``model`` keeps of the dense one; a bundle's is its own, and at another r none is known.
        name: of the model, for people.
        command: what reproduces this, for people.
        stage: called with each stage's name, gives a context that lasts as long as the stage.
        on_round: called after every round.

    Raises:
        CodaError: inputs longer than the model allows, more threads than cores, or nothing left to measure.
    """
    threads = thread_count(plan.threads)
    plan.check()
    taking_part = Entries()
    with private_folder() as folder:
        if isinstance(model, Bundle):
            fidelity = model.manifest.fidelity
            if plan.reductions:
                raise CodaError("a bundle has one r only: give its checkpoint to measure others")
            model.check()
            if dense is not None and model.manifest.layers:  # or else its tensors stand in an ONNX file's form
                _check_same(dense, model)
            for bundle in _variants(model, plan):
                if lacking := bundle.lacks(bundle.variant):
                    raise TargetError(lacking)
                taking_part.add_bundle(bundle)
        else:
            _compile_each(model, plan, folder, taking_part, stage)
            dense = dense or model
        device = device_of(entry.target for entry in taking_part.entries)
        signature = taking_part.manifest.signature
        shapes = cases(plan, signature, device)
        if dense is not None:
            (folder / "dense").mkdir()
            taking_part.add_dense(dense, folder / "dense", plan, device, stage)
        else:
            why = "a bundle holds no dense model"
            taking_part.skipped.append(Skipped("dense baselines", why, "give its model too, with --checkpoint MODEL"))
        rates = {}
        if taking_part.manifest.layers and device != GPU:  # or else nobody knows what there is to multiply
            with stage("matrix product"):
                sizes = taking_part.manifest.width, taking_part.manifest.feed_forward
                rates = matrix_rates(folder, *sizes, rounds=plan.rounds, threads=threads)
        with stage("turns"):
            timings = in_turns(
                [entry.contender for entry in taking_part.entries],
                [signature.random(batch, length) for batch, length in shapes],
                rounds=plan.rounds,
                threads=threads,
                on_round=on_round,
                on_failure=lambda error: taking_part.skipped.append(_failed(error)),
            )
    taking_part.entries = [entry for entry in taking_part.entries if entry.contender.name in timings]
    if all(entry.manifest is None for entry in taking_part.entries):
        last = taking_part.skipped[-1]
        raise CodaError(f"{last.contender} cannot be measured: {last.reason}")
    measurements = tuple(
        _measurement(entry, case, i, timings, taking_part)
        for i, case in enumerate(shapes)
        for entry in taking_part.entries
    )
    return BenchResult(
        command=command,
        model=name,
        model_sha256=taking_part.manifest.model_sha256,
        machine=this_machine(),
        threads=threads,
        rounds=plan.rounds,
        matrix_rates=rates,
        measurements=measurements,
        bounds=tuple(_bounds(measurements, taking_part, rates)),
        skipped=tuple(taking_part.skipped),
        fidelity=None if plan.reductions else fidelity,
    )


def _variants(bundle: Bundle, plan: Plan) -> list[Bundle]:
    """The variants of a bundle to measure: those of the targets and precisions asked for, or the one that is open."""
    if not plan.targets and not plan.precisions:
        return [bundle]
    targets: Sequence[str | None] = plan.targets or [None]
    precisions: Sequence[str | None] = plan.precisions or [None]
    return [Bundle(bundle.folder, target=one, precision=other) for one, other in product(targets, precisions)]


def _check_same(dense: "CodaModel", bundle: Bundle) -> None:
    """Refuse dense baselines of another model."""
    from coda_compile.bundling.writer import model_digest

    if model_digest(dense) != bundle.manifest.model_sha256:
        raise CodaError(f"{bundle.folder} was compiled from another model than the one to compare it with")


def _compile_each(model: "CodaModel", plan: Plan, folder: Path, taking_part: Entries, stage: Stage) -> None:
    from coda_compile.backends import get_backend
    from coda_compile.options import CompileOptions
    from coda_compile.pipeline import compile

    texts = calibration_inputs(model.signature)
    backends = [get_backend(name) for name in plan.targets or [DEFAULT_TARGET]]
    asked = plan.precisions or usual_precisions(plan.device())
    kinds = [(one.name, precision) for one in backends for precision in one.precisions if precision in asked]
    if not kinds:
        there = ", ".join(dict.fromkeys(precision for backend in backends for precision in backend.precisions))
        raise CodaError(f"there is nothing to compile in {', '.join(asked)}: use a precision of {there}")
    reductions: Sequence[str | None] = plan.reductions or [None]
    for i, (reduction, (target, precision)) in enumerate(product(reductions, kinds)):
        kind = precision if target == DEFAULT_TARGET else f"{precision} {target}"
        with stage(f"compile {kind}" if reduction is None else f"compile r={reduction} {kind}"):
            wanted = reduction.split(",") if reduction and "," in reduction else reduction
            output = folder / f"compiled-{i}"
            options = CompileOptions(
                target=target,
                reduction=wanted,
                precision=precision,
                calibration=texts if get_precision(precision).calibrated else None,
            )
            taking_part.add_bundle(compile(model, options, output=output))


def _failed(error: MeasuringError) -> Skipped:
    contender, _, reason = str(error).partition(" cannot be measured: ")
    return Skipped(contender, reason, "")


def _measurement(
    entry: Entry, case: tuple[int, int], i: int, timings: dict[str, Timings], taking_part: Entries
) -> Measurement:
    batch, tokens = case
    own = timings[entry.contender.name]
    rounds, seconds = own.rounds(i), own.every_run(i)
    summary = summarise(seconds)
    faster = {
        variant_of(other.reduction, other.precision, other.target, other.form): ratio_interval(
            rounds, timings[other.contender.name].rounds(i)
        )
        for other in taking_part.entries
        if other.manifest is not None and entry.manifest is None
    }
    manifest = entry.manifest or taking_part.manifest
    count = dense_multiply_adds if entry.manifest is None else multiply_adds
    return Measurement(
        contender=entry.contender.name,
        precision=entry.precision,
        reduction=entry.reduction,
        batch=batch,
        tokens=tokens,
        seconds=tuple(seconds),
        rounds=tuple(rounds),
        summary=summary,
        tokens_per_second=batch * tokens / summary.median,
        speed_up=faster,
        first_seconds=own.first[i],
        opened_seconds=own.opened,
        peak_bytes=own.peak_bytes,
        file_bytes=entry.file_bytes,
        multiply_adds=batch * count(manifest, tokens),
        target=entry.target,
        form=entry.form,
    )


def _bounds(measurements: Sequence[Measurement], taking_part: Entries, rates: dict[str, float]) -> list[Bound]:
    """What arithmetic allows each fp32 model of the default target on each input, and how much of it was reached."""
    bounds = []
    for entry in taking_part.entries:
        if entry.manifest is None or not entry.manifest.layers:
            continue
        if (entry.precision, entry.target) != (UNQUANTISED, DEFAULT_TARGET):
            continue
        for own in (m for m in measurements if m.contender == entry.contender.name):
            ratio = dense_multiply_adds(entry.manifest, own.tokens) / multiply_adds(entry.manifest, own.tokens)
            reference = next(
                (
                    m
                    for m in measurements
                    if m.contender == REFERENCE and (m.batch, m.tokens) == (own.batch, own.tokens)
                ),
                None,
            )
            reached = None if reference is None else reference.speed_up[own.reduction].middle / ratio
            rate = own.multiply_adds / own.summary.median / rates[UNQUANTISED]
            bounds.append(Bound(own.reduction, own.batch, own.tokens, ratio, reached, rate))
    return bounds
