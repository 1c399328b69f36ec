"""choose(): precision, r and kernels by measured accuracy and latency on the user's data."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from operator import eq
from pathlib import Path

import numpy as np

from coda_compile.bench.entries import reduction_of
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.bundling.writer import check_output, label_names, logits_of
from coda_compile.errors import OptionError, as_sentences
from coda_compile.inspect.cost import multiply_adds
from coda_compile.inspect.predict import predict
from coda_compile.logits import check_one_label
from coda_compile.options import CompileOptions
from coda_compile.pipeline import compile
from coda_compile.precision import UNQUANTISED, get_precision
from coda_compile.sources import read_model
from coda_compile.statistics import ratio_interval
from coda_compile.text_files import MEASURED, read_rows
from coda_models.config import Reduction
from coda_models.model import CodaModel
from coda_ops.files import private_folder
from coda_targets import Bundle
from coda_targets.bundle import Arrays
from coda_targets.modalities.text import Text, TextCodec
from coda_targets.runtimes.session import usable_kernels

Reductions = Reduction | Sequence[Reduction]
_DEFAULTS = CompileOptions()
Stage = Callable[[str], AbstractContextManager[object]]
_FACTORS = tuple(map(Fraction, ("1", "1/2", "3/2", "2", "3")))  # of the r that a model was trained at


@dataclass(frozen=True)
class Candidate:
    """One way to compile the model, and what it is worth on the texts.

    Attributes:
        reduction: in text; one a layer, with commas, where they differ.
        right: texts labelled as they should be.
        same: texts labelled as the reference labels them.
        seconds: median latency of one text of median length.
        multiply_adds: for that text.
    """

    reduction: str
    precision: str
    right: int
    same: int
    seconds: float
    multiply_adds: int


@dataclass(frozen=True)
class Choice:
    """What was measured, and what came of it.

    Attributes:
        bundle: the chosen one.
        candidates: all; the first is the reference, the model as it was trained in fp32.
        chosen: the fastest one within the budget.
        kernels: how much faster it is on native kernels than on function bodies; ``None`` where there are none.
        texts: how many were labelled.
        tokens: of the text that was timed.
        budget: points of accuracy that might be lost.
    """

    bundle: Bundle
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    kernels: float | None
    texts: int
    tokens: int
    budget: float

    def lost(self, candidate: Candidate) -> float:
        """Points of accuracy below the reference; negative above it."""
        return _lost(candidate.right, self.candidates[0].right, self.texts)

    def on_front(self, candidate: Candidate) -> bool:
        """Whether no other one is at least as accurate and as fast, and better in one of the two."""
        own = (candidate.right, -candidate.seconds)
        others = ((other.right, -other.seconds) for other in self.candidates)
        return not any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in others)


@dataclass(frozen=True)
class _Compiled:
    reduction: Reductions
    bundle: Bundle
    answers: list[str]


@as_sentences()
def choose(
    model: CodaModel | Path | str,
    options: CompileOptions = _DEFAULTS,
    *,
    data: Path,
    budget: float,
    output: Path,
    rounds: int = 15,
    threads: int = 0,
    stage: Stage = nullcontext,
) -> Choice:
    """Compile a classifier in every fast precision of a target and at several r, and keep the fastest good enough one.

    Args:
        model: a model in memory or a path, at the r that it was trained at.
        options: for one target. ``precision`` is what is looked for; ``reduction`` is the only r to try, and then the
            reference's too; without ``calibration`` no calibrated precision is tried; the score of the chosen bundle
            alone is fitted.
        data: CSV file with the columns ``text``, ``text_pair`` of pairs, and ``label``, of texts that played no part
            in training.
        budget: points of accuracy, of a hundred, that may be lost against the reference.
        output: folder of the chosen bundle.
        rounds: of timing, in turns, a process each.
        threads: of every process, 0 for all cores.
        stage: called with each stage's name, gives a context that lasts as long as the stage.

    Raises:
        CodaError: a model that does not choose one label of several for a text or has no tokenizer, or data that
            cannot be read.
    """
    output = output.resolve()
    if options.prune_gates is not None:
        raise OptionError("candidates run at other r themselves: leave {prune_gates} out")
    tried = replace(options, precision=UNQUANTISED, calibration=None)
    tried.check()
    backend, *others = tried.backends()
    if others:
        raise OptionError("candidates are measured on one target: give one {target}")
    check_output(output)
    with stage("load"):
        source = read_model(model, options.backbone)
        source.apply(replace(options, reduction=None))
    names = label_names(source.model)
    check_one_label(MEASURED, source.model.coda_config.task, logits_of(source.model), names)
    texts, labels = zip(*read_rows(data, names), strict=True)
    if source.tokenizer is None:
        raise OptionError("choosing by accuracy runs the model on texts, and it has no tokenizer: give a {tokenizer}")
    tried = replace(tried, backbone=None, tokenizer=source.tokenizer, problem_type=None, labels=None)
    reductions = _around(source.model) if options.reduction is None else [options.reduction]
    recipes = [recipe for recipe in map(get_precision, backend.precisions) if recipe.chosen]
    recipes = [recipe for recipe in recipes if options.calibration is not None or not recipe.calibrated]

    def candidate(reduction: Reductions, precision: str) -> CompileOptions:
        calibration = options.calibration if get_precision(precision).calibrated else None
        return replace(tried, reduction=reduction, precision=precision, calibration=calibration)

    with private_folder() as temporary:
        compiled = []
        for i, (r, recipe) in enumerate(product(reductions, recipes)):
            with stage(f"candidate {i + 1} of {len(reductions) * len(recipes)}"):
                silent = replace(candidate(r, recipe.name), ood=None, ood_data=None)
                bundle = compile(source.model, silent, output=temporary / str(i))
                answers = [record["label"] for _, record, _ in predict(bundle, texts)]
            compiled.append(_Compiled(r, bundle, answers))
        timed = _median_text(compiled[0].bundle, texts)
        with stage("turns"):
            numbers = [str(i) for i in range(len(compiled))]
            contenders = [Contender.of_bundle(n, c.bundle) for n, c in zip(numbers, compiled, strict=True)]
            timings = in_turns(contenders, [timed], rounds=rounds, threads=threads)
        _, tokens = compiled[0].bundle.manifest.signature.shape(timed)
        candidates = [
            Candidate(
                reduction=reduction_of(c.bundle.manifest),
                precision=c.bundle.variant.precision,
                right=sum(map(eq, c.answers, labels)),
                same=sum(map(eq, c.answers, compiled[0].answers)),
                seconds=float(np.median(timings[name].every_run())),
                multiply_adds=multiply_adds(c.bundle.manifest, tokens),
            )
            for name, c in zip(numbers, compiled, strict=True)
        ]
        allowed = [i for i, c in enumerate(candidates) if _lost(c.right, candidates[0].right, len(texts)) <= budget]
        best = min(allowed, key=lambda i: candidates[i].seconds)
        kernels = None
        if (library := backend.runtime.kernels) and usable_kernels(library) is not None:
            with stage("kernels"):
                kernels = _gain_of_kernels(compiled[best].bundle, timed, rounds, threads)
    with stage("compile"):
        chosen = candidate(compiled[best].reduction, candidates[best].precision)
        runtime = replace(backend.runtime, kernels=library if kernels is None or kernels >= 1 else "")
        bundle = compile(source.model, replace(chosen, target=replace(backend, runtime=runtime)), output=output)
    return Choice(bundle, tuple(candidates), candidates[best], kernels, len(texts), tokens, budget)


def _lost(right: int, reference: int, texts: int) -> float:
    return 100 * (reference - right) / texts


def _around(model: CodaModel) -> list[list[Fraction]]:
    """r of every layer: as trained, then by each factor. A dense model has but one."""
    trained = model.coda_config.layer_reductions(len(model.layers))
    scaled = [[max(Fraction(1), r * factor) if r > 1 else r for r in trained] for factor in _FACTORS]
    return [r for i, r in enumerate(scaled) if r not in scaled[:i]]


def _median_text(bundle: Bundle, texts: Sequence[Text]) -> Arrays:
    """A text of median length as the model takes it, alone."""
    codec, signature = TextCodec(bundle), bundle.manifest.signature
    encoded = sorted((codec.encode([text]).inputs for text in texts), key=signature.shape)
    return encoded[len(encoded) // 2]


def _gain_of_kernels(bundle: Bundle, timed: Arrays, rounds: int, threads: int) -> float:
    contenders = [Contender.of_bundle(str(portable), bundle, portable=portable) for portable in (False, True)]
    with_kernels, without = in_turns(contenders, [timed], rounds=rounds, threads=threads).values()
    return ratio_interval(without.rounds(), with_kernels.rounds()).middle
