"""route(): a dense model routed by what its own answers to unlabelled texts say, saved, and measured on other texts."""

import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from coda_compile.errors import CompileWarning, OptionError, as_sentences
from coda_compile.text_files import read_table
from coda_compile.tune.agreement import Answer, Figures
from coda_compile.tune.budget import Chosen, within_points, within_share
from coda_compile.tune.dense import read_dense
from coda_compile.tune.fits import Fits
from coda_compile.tune.held_out import HeldOut, Routed, labels_of
from coda_compile.tune.route_options import Reductions, RouteOptions, Stage, spelt
from coda_compile.tune.steps import Stepping, kept_beside
from coda_compile.tune.texts import HELD_OUT, Texts, apart, batches, check_known, check_told_apart, hold_out, split
from coda_models.checkpoint import check_finite, save
from coda_models.fitting.batches import Progress, silent
from coda_models.model import CodaModel
from coda_ops.files import check_result_file

R = "{r}"  # in the name of a file, where there are several
_ARCHIVE = b"PK"  # what a torch file begins with
_ASIDE, _MOST_ASIDE = 1 / 10, 160  # share of the texts that steps are judged by, and how many of them at most
_DEFAULTS = RouteOptions()


@dataclass(frozen=True)
class Front:
    """Routed models of one dense one.

    Attributes:
        routed: one for each r, as asked.
        accuracy: of the dense model against labels, by name; empty without.
        chosen: r by layer and what was expected of it, where it was chosen within a budget.
        fitted_on, held_out: how many texts.
        tokens: of the median held-out text.
        backbone: that was given for a delta, and is to be given again.
    """

    routed: tuple[Routed, ...]
    accuracy: Figures
    chosen: Chosen | None
    fitted_on: int
    held_out: int
    tokens: int
    backbone: Path | str | None = None


@as_sentences()
def route(
    model: CodaModel | Path | str,
    texts: Path | Texts,
    options: RouteOptions = _DEFAULTS,
    *,
    reductions: Sequence[Reductions] | None = None,
    output: Path,
    stage: Stage = nullcontext,
    progress: Progress = silent,
) -> Front:
    """Route a dense model: fit routers, stand-ins and readout to its own answers, train on those for some steps where
    they are asked for, and save what came of it.

    A fifth of the texts, 400 at most, is held out and used to measure alone, or those of another file are. r is given,
    or chosen for each layer within a budget. With steps a command that was interrupted goes on where it was, when it is
    given again: what is finished is kept in a folder beside the output until all is.

    Args:
        model: a model in memory, or a path that ``coda_compile.sources.read_source`` knows, at r = 1.
        texts: a CSV file with the column ``text``, JSON lines, or a text a line, like those that the model will see; or
            what is read of one, some of it held out already.
        options: how; see ``RouteOptions``.
        reductions: r of each model that is made: one, or one for each layer; 4 by default. None within a budget.
        output: the checkpoint, replaced whole or not at all; ``{r}`` in its name stands for a given r. A delta of a
            delta.
        stage: called with each stage's name, gives a context that lasts as long as the stage.
        progress: told what is being fitted, steps done, and of how many.

    Raises:
        CodaError: one sentence that says what was wrong; models of other r that are saved by then stay.
    """
    given = options.given(reductions)
    paths = paths_of(model, output, given)
    configs = [options.config(r) for r in given or (2,)]
    if isinstance(texts, Path):
        rows = read_table(texts, options.label_column)
        if options.held_out is None:
            texts = hold_out(rows, texts, options.seed)
        else:
            texts = apart(rows, texts, read_table(options.held_out, options.label_column), options.held_out)
    kept_aside = HELD_OUT if options.accuracy_budget is not None else _ASIDE if options.steps else 0.0
    parts = split(texts, fit_texts=options.fit_texts, aside=kept_aside)
    with stage("load"):
        source = read_dense(model, options)
        dense, tokenizer = source.model, source.tokenizer
        assert tokenizer is not None
        for config in configs:
            config.layer_reductions(len(dense.layers))
        labels: list[Answer] = []
        if options.label_column is not None:
            labels = labels_of(dense, [*parts.held_out, *parts.aside, *parts.readout])[: len(parts.held_out)]
    with stage("read"):
        fit, readout, held_out, aside = (
            batches(rows, tokenizer, dense.signature)
            for rows in (parts.fit, parts.readout, parts.held_out, parts.aside)
        )
        everything = [*readout, *held_out, *aside]
        check_known(everything, tokenizer, dense.signature, texts.path)
        check_told_apart(everything, dense.signature, texts.path)
        measured = HeldOut(dense, held_out, labels)
        measured.warn_of_one_class()
    judged = batches(parts.aside[:_MOST_ASIDE], tokenizer, dense.signature) if options.steps else []
    with ExitStack() as stack:
        stepping = None
        if options.steps:
            fit_on, step_on, judge_by = ([batch.inputs for batch in some] for some in (fit, readout, judged))
            folder = stack.enter_context(kept_beside(output, dense, options, (fit_on, step_on, judge_by)))
            stepping = Stepping(folder, dense, options, step_on, judge_by, progress)
        began = time.perf_counter()
        with stage("routers"):
            fits = Fits(dense, options, fit, readout, progress)
        chosen: Chosen | None = None
        plans: list[tuple[Reductions, CodaModel | None]] = [(r, None) for r in given]
        if options.budget is not None:
            with stage("layers"):
                chosen = within_share(fits, options.budget, measured.figure)
            plans = [(chosen.choice.reductions, None)]
        elif options.accuracy_budget is not None:
            chosen, best = within_points(fits, HeldOut(dense, aside), options.accuracy_budget, stage)
            plans = [(chosen.choice.reductions, best)]
        shared = time.perf_counter() - began
        found = []
        for (r, made), path in zip(plans, paths, strict=True):
            began = time.perf_counter()
            if made is None:
                with stage(f"route r={spelt(r)}"):
                    made = fits.routed(r) if stepping is None else stepping.fitted(spelt(r), partial(fits.routed, r))
            fitted: Figures | None = None
            if stepping is not None:
                with stage(f"steps r={spelt(r)}"):
                    fitted = measured.agreement(made)
                    made = stepping.distilled(spelt(r), made)
            check_finite(made.state_dict(), path)
            seconds = shared + time.perf_counter() - began
            with stage("measure"):
                found.append(measured.measure(made, path, spelt(r), seconds, fitted))
            with stage("save"):
                fidelity = measured.fidelity(found[-1], len(parts.fit))
                save(made, path, tokenizer=tokenizer, delta=source.backbone is not None, fidelity=fidelity)
            if found[-1].share >= 1:
                warnings.warn(
                    f"at r = {spelt(r)} the layers take {found[-1].share:.0%} of the dense model's multiply-adds: "
                    "smaller ranks or another r may take less",
                    CompileWarning,
                    stacklevel=2,
                )
    return Front(
        tuple(found),
        measured.accuracy,
        chosen,
        fitted_on=len(parts.fit),
        held_out=len(measured),
        tokens=measured.tokens,
        backbone=options.backbone if source.backbone is not None else None,
    )


def paths_of(model: CodaModel | Path | str, output: Path, given: Sequence[Reductions]) -> list[Path]:
    """Where each model goes.

    Raises:
        CodaError: nothing can be written there, or should be.
    """
    if not given:
        if R in output.name:
            raise OptionError("r is not known before it is chosen: name {output} without {r}", r=R)
        return [_path(model, output, "")]
    if len(given) > 1 and R not in output.name:
        raise OptionError("several r need a file each: write {r} where r goes in {output}, as in routed-{r}.pt", r=R)
    paths = [_path(model, output, spelt(r)) for r in given]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise OptionError("two models would go to {path}: give each {reduction} once", path=twice)
    return paths


def _path(model: CodaModel | Path | str, output: Path, reduction: str) -> Path:
    """Not over anything else."""
    if not output.name:
        raise OptionError("{output} {path} is a folder: name a file in it, as in routed.pt", path=output)
    path = output.with_name(output.name.replace(R, reduction.replace("/", "_")))
    check_result_file(path, _ARCHIVE)
    if isinstance(model, Path | str) and path.resolve() == Path(model).resolve():
        raise OptionError("{output} {path} is the model itself: name another file", path=path)
    return path
