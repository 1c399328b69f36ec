"""bench(): the compiled model against the dense adapter in every common runtime."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.bench.machine import this_machine, thread_count
from coda_compile.bench.matrix import matrix_rates
from coda_compile.bench.result import BenchResult, Bound, Measurement, Skipped, variant_of
from coda_compile.bench.turns import Contender, MeasuringError, Timings, calibration_inputs, in_turns
from coda_compile.errors import CodaError, as_sentences
from coda_compile.inspect.cost import dense_multiply_adds, multiply_adds
from coda_compile.precision import UNQUANTISED, get_precision, precision_names
from coda_compile.statistics import ratio_interval, summarise
from coda_ops.files import private_folder
from coda_targets import Bundle
from coda_targets.manifest import Manifest
from coda_targets.runtimes import DEFAULT_TARGET
from coda_targets.signature import Signature

if TYPE_CHECKING:
    from coda_models import CodaModel

COMPILED = "coda-compile"
REFERENCE = "onnxruntime"  # the dense baseline whose distance the multiply-adds bound speaks of
_DEFAULT_TOKENS = (128, 512)
Stage = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        reductions: r of the compiled models; empty for the one that the model was trained at.
        batches, tokens: every combination; no tokens stand for 128 and 512, as far as the model allows.
        targets: of the compiled models; empty for the default one.
        precisions: of the compiled models, as far as their target has them, and of dense baselines whose weights have
            as many bits; empty for those that ``choose`` tries without calibration.
        rounds: for each input.
        threads: of each contender, 0 for all cores.
        skip: names of baselines to leave out.
    """

    reductions: Sequence[str] = ()
    batches: Sequence[int] = (1,)
    tokens: Sequence[int] = ()
    precisions: Sequence[str] = ()
    rounds: int = 15
    threads: int = 0
    skip: Sequence[str] = ()
    targets: Sequence[str] = ()


@dataclass
class _Entry:
    contender: Contender
    precision: str
    reduction: str
    file_bytes: int
    target: str = DEFAULT_TARGET
    manifest: Manifest | None = None  # of a compiled one


@dataclass
class _Entries:
    """Everyone who takes part, and everyone who cannot."""

    entries: list[_Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        """Of the first compiled model: the sizes that all share."""
        return next(entry.manifest for entry in self.entries if entry.manifest is not None)

    def add_bundle(self, bundle: Bundle) -> None:
        """A compiled model, named after its r and precision."""
        reduction = reduction_of(bundle.manifest)
        precision, target = bundle.variant.precision, bundle.variant.target
        contender = Contender.of_bundle(f"{COMPILED} r={variant_of(reduction, precision, target)}", bundle)
        self.entries.append(_Entry(contender, precision, reduction, bundle.model_bytes, target, bundle.manifest))

    def add_baselines(self, model: "CodaModel", folder: Path, plan: Plan, stage: Stage) -> None:
        """The dense adapter in every runtime that is installed."""
        from coda_compile.bench.baselines import BASELINES, DenseAdapter, build_baseline

        dense = DenseAdapter(model, folder)
        for baseline in BASELINES:
            asked = any(get_precision(name).bits == get_precision(baseline.precision).bits for name in plan.precisions)
            if not asked or baseline.name in plan.skip:
                continue
            with stage(baseline.name):
                built = build_baseline(baseline, dense)
            if isinstance(built, Skipped):
                self.skipped.append(built)
            else:
                self.entries.append(_Entry(built[0], baseline.precision, "1", built[1]))


def reduction_of(manifest: Manifest) -> str:
    """r of a compiled model in text; one a layer, with commas, where they differ; 1 where its layers are not known."""
    each = [layer.reduction for layer in manifest.layers] or ["1"]
    return each[0] if len(set(each)) == 1 else ",".join(each)


@as_sentences()
def bench(
    model: "CodaModel | Bundle",
    *,
    dense: "CodaModel | None" = None,
    plan: Plan = Plan(),
    name: str = "model",
    command: str = "",
    stage: Stage = nullcontext,
    on_round: Callable[[], None] = lambda: None,
) -> BenchResult:
    """Measure a compiled model and the dense adapter of the same checkpoint, on the same inputs, in turns.

    Args:
        model: to compile at each r of the plan, or a bundle to measure as it is.
        dense: what the dense baselines are made from; by default ``model``, and none beside a bundle.
        name: of the model, for people.
        command: what reproduces this, for people.
        stage: called with each stage's name, gives a context that lasts as long as the stage.
        on_round: called after every round.

    Raises:
        CodaError: inputs longer than the model allows, more threads than cores, or nothing left to measure.
    """
    threads = thread_count(plan.threads)
    plan = replace(plan, precisions=plan.precisions or _usual_precisions())
    taking_part = _Entries()
    with private_folder() as folder:
        if isinstance(model, Bundle):
            for what, asked in (("r", plan.reductions), ("target", plan.targets)):
                if asked:
                    raise CodaError(f"a bundle has one {what} only: give its checkpoint to measure others")
            model.check()
            if dense is not None and model.manifest.layers:  # or else its tensors stand in an ONNX file's form
                _check_same(dense, model)
            taking_part.add_bundle(model)
        else:
            _compile_each(model, plan, folder, taking_part, stage)
            dense = dense or model
        signature = taking_part.manifest.signature
        cases = _cases(plan, signature)
        if dense is not None:
            (folder / "dense").mkdir()
            taking_part.add_baselines(dense, folder / "dense", plan, stage)
        else:
            why = "a bundle holds no dense adapter"
            taking_part.skipped.append(Skipped("dense baselines", why, "give its model too, with --checkpoint MODEL"))
        rates = {}
        if taking_part.manifest.layers:  # or else nobody knows what there is to multiply
            with stage("matrix product"):
                sizes = taking_part.manifest.width, taking_part.manifest.feed_forward
                rates = matrix_rates(folder, *sizes, rounds=plan.rounds, threads=threads)
        with stage("turns"):
            timings = in_turns(
                [entry.contender for entry in taking_part.entries],
                [signature.random(batch, length) for batch, length in cases],
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
        for i, case in enumerate(cases)
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
    )


def _usual_precisions() -> list[str]:
    recipes = map(get_precision, precision_names())
    return [recipe.name for recipe in recipes if recipe.chosen and not recipe.calibrated]


def _check_same(dense: "CodaModel", bundle: Bundle) -> None:
    """Refuse dense baselines of another model."""
    from coda_compile.bundling.writer import model_digest

    if model_digest(dense) != bundle.manifest.model_sha256:
        raise CodaError(f"{bundle.folder} was compiled from another model than the one to compare it with")


def _compile_each(model: "CodaModel", plan: Plan, folder: Path, taking_part: _Entries, stage: Stage) -> None:
    from coda_compile.backends import get_backend
    from coda_compile.options import CompileOptions
    from coda_compile.pipeline import compile

    texts = calibration_inputs(model.signature)
    backends = [get_backend(name) for name in plan.targets or [DEFAULT_TARGET]]
    kinds = [(backend.name, precision) for backend in backends for precision in backend.precisions]
    kinds = [(target, precision) for target, precision in kinds if precision in plan.precisions]
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


def _cases(plan: Plan, signature: Signature) -> list[tuple[int, int]]:
    """Batch and length of every input."""
    longest = signature.max_length
    lengths = plan.tokens or sorted({min(length, longest) for length in _DEFAULT_TOKENS})
    if max(lengths) > longest:
        raise CodaError(f"{max(lengths)} {signature.unit} are more than this model takes: give at most {longest}")
    return [(batch, length) for batch in plan.batches for length in lengths]


def _failed(error: MeasuringError) -> Skipped:
    contender, _, reason = str(error).partition(" cannot be measured: ")
    return Skipped(contender, reason, "")


def _measurement(
    entry: _Entry, case: tuple[int, int], i: int, timings: dict[str, Timings], taking_part: _Entries
) -> Measurement:
    batch, tokens = case
    own = timings[entry.contender.name]
    rounds, seconds = own.rounds(i), own.every_run(i)
    summary = summarise(seconds)
    faster = {
        variant_of(other.reduction, other.precision, other.target): ratio_interval(
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
    )


def _bounds(measurements: Sequence[Measurement], taking_part: _Entries, rates: dict[str, float]) -> list[Bound]:
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
