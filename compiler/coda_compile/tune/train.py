"""train(): a dense adapter trained from labels, saved, measured on texts that were held out, and routed where asked."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from coda_compile.errors import OptionError, as_sentences
from coda_compile.sources.classes import name_classes
from coda_compile.sources.truncation import longest
from coda_compile.text_files import Row, columns, read_table
from coda_compile.tune.agreement import Answer, Figures, accuracy, answers, kind_of
from coda_compile.tune.labels import read_labels
from coda_compile.tune.linear import linear_figures
from coda_compile.tune.route import Front, paths_of, route
from coda_compile.tune.route_options import Reductions, RouteOptions, Stage
from coda_compile.tune.steps import interrupted, steps_folder
from coda_compile.tune.texts import Texts, batches, check_known, distinct, held_out_of, median_length
from coda_compile.tune.train_options import TrainOptions
from coda_models.backbone import load_backbone, load_tokenizer
from coda_models.checkpoint import check_finite, load, save
from coda_models.config import CodaConfig
from coda_models.conversion import convert
from coda_models.digest import tensor_digest
from coda_models.errors import CheckpointError
from coda_models.fitting.batches import Progress, silent
from coda_models.model import CodaModel
from coda_models.training.collator import TextCollator
from coda_models.training.recipe import DENSE, Recipe, fit, last_epoch
from coda_models.training.run_folder import run_folder
from coda_ops.files import check_result_file
from coda_targets.manifest import REGRESSION
from coda_targets.modalities.text import IDS, TYPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ARCHIVE = b"PK"  # what a torch file begins with
_EPOCHS, _TRAINED = "epochs", "trained.pt"  # in the folder of a run
_LONGEST = 512  # tokens, where nobody asks for more


_DEFAULTS, _ROUTING = TrainOptions(), RouteOptions()


@dataclass(frozen=True)
class Trained:
    """A dense adapter in its file, and what it is worth on the held-out texts.

    Attributes:
        problem_type: what was learned.
        classes: how many; 1 of a regression.
        accuracy: against labels, by name.
        baseline: the same of a linear model on words; ``None`` where scikit-learn is not installed.
        trained_on, held_out: how many texts.
        tokens: of the median held-out text.
        seconds: that training took; ``None`` where it went on from an interrupted run.
        front: routed models of it; ``None`` where none was asked for.
    """

    path: Path
    problem_type: str
    classes: int
    accuracy: Figures
    baseline: Figures | None
    trained_on: int
    held_out: int
    tokens: int
    seconds: float | None
    front: Front | None = None


@dataclass(frozen=True)
class _Data:
    """Rows with their labels, those to train on and those that are held out."""

    train: list[Row]
    held_out: list[Row]
    train_labels: list[Any]
    held_out_labels: list[Answer]
    problem_type: str
    names: tuple[str, ...]


@as_sentences()
def train(
    data: Path,
    backbone: Path | str,
    options: TrainOptions = _DEFAULTS,
    *,
    routing: RouteOptions = _ROUTING,
    reductions: Sequence[Reductions] | None = None,
    output: Path,
    stage: Stage = nullcontext,
    progress: Progress = silent,
) -> Trained:
    """Train a dense adapter on labelled texts, and route it.

    A fifth of the texts, 400 at most, is held out, of each class its share, and used to measure alone.

    Args:
        data: a CSV file with the columns ``text``, of pairs ``text_pair``, and ``label``, or JSON lines with such keys.
        backbone: folder or hub name of a pretrained encoder; it stays as it is.
        options: how; see ``TrainOptions``.
        routing: how to route it afterwards, see ``RouteOptions``; labels, backbone and seed are those of this call.
        reductions: r of each routed model, as for ``route``; by default, and without a budget, nothing is routed.
        output: the checkpoint, replaced whole or not at all. Routed ones stand beside it: ``trained-r4.pt``, or within
            a budget ``trained-routed.pt``.
        stage: called with each stage's name, gives a context that lasts as long as the stage.
        progress: told what is being done, steps done, and of how many.

    Raises:
        CodaError: one sentence that says what was wrong.
        KeyboardInterrupt: with a sentence that says how to go on, from the last whole epoch or behind it.
    """
    import accelerate  # noqa: F401  which Trainer would ask for in its own words

    check_result_file(output, _ARCHIVE)
    routing = replace(
        routing,
        label_column=options.label_column,
        backbone=backbone if options.delta else None,
        seed=options.seed,
    )
    routes = bool(reductions) or routing.chooses
    if routing.steps and not routes:
        raise OptionError(
            "{steps} are taken by a routed model: give {reduction}, {budget} or {accuracy_budget} as well"
        )
    routed = output.with_name(f"{output.stem}-{'r{r}' if reductions else 'routed'}.pt")
    given = routing.given(reductions) if routes else ()
    if routes:
        paths_of(output, routed, given)
    configs = [routing.config(r) for r in given or (2,)] if routes else []
    with stage("read"):
        found = _read(data, options)
    with stage("load"):
        model, tokenizer = _untrained(backbone, found, options)
        for config in configs:
            config.layer_reductions(len(model.layers))
        held_out = batches(found.held_out, tokenizer, model.signature)
        check_known(batches(found.train, tokenizer, model.signature), tokenizer, model.signature, data)
    left = steps_folder(routed) if routing.steps else None
    with _run(output, found, options, model, left) as folder:
        seconds = None
        if (folder / _TRAINED).exists():
            model.load_state_dict(load(folder / _TRAINED).model.state_dict())
        else:
            with stage("train"):
                seconds = _fit(model, tokenizer, found, options, folder / _EPOCHS, progress)
                check_finite(model.state_dict(), output)
            if routes:
                save(model, folder / _TRAINED)
        with stage("save"):
            save(model, output, tokenizer=tokenizer, delta=options.delta)
        with stage("measure"):
            kind = kind_of(model)
            figures = accuracy(kind, found.held_out_labels, answers(model, held_out))
            train_texts, test_texts = ([row.text for row in rows] for rows in (found.train, found.held_out))
            baseline = linear_figures(kind, train_texts, test_texts, found.train_labels, found.held_out_labels)
        front = None
        if routes:
            front = route(
                output,
                Texts(found.train, found.held_out, data),
                routing,
                reductions=reductions,
                output=routed,
                stage=stage,
                progress=progress,
            )
    return Trained(
        output,
        found.problem_type,
        len(found.names),
        figures,
        baseline,
        trained_on=len(found.train),
        held_out=len(found.held_out),
        tokens=median_length(held_out),
        seconds=seconds,
        front=front,
    )


def _read(data: Path, options: TrainOptions) -> _Data:
    rows = distinct(read_table(data, options.label_column), data, "training")
    labels = read_labels(rows, data, options.problem_type)
    places = labels.held_out(held_out_of(len(rows)), options.seed)
    apart = set(places)
    rest = [int(i) for i in np.random.default_rng(options.seed).permutation(len(rows)) if i not in apart]
    return _Data(
        [rows[i] for i in rest],
        [rows[i] for i in places],
        [labels.values[i] for i in rest],
        [np.atleast_1d(np.array(labels.values[i], dtype=np.float64)) for i in places],
        labels.problem_type,
        labels.names,
    )


def _untrained(backbone: Path | str, data: _Data, options: TrainOptions) -> "tuple[CodaModel, PreTrainedTokenizerBase]":
    """The encoder with adapters and a head that have learned nothing yet, and its tokenizer, both cutting alike.

    Raises:
        CodaError: what stands in the way.
    """
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        pretrained = load_backbone(
            backbone,
            "sequence-classification",
            num_labels=len(data.names),
            problem_type=data.problem_type,
            attention_probs_dropout_prob=0.0,  # it would rule out the fused attention kernel
        )
        name_classes(pretrained.config, data.names)
        # The encoder is frozen, and its first token may never have learned to sum up.
        config = CodaConfig(reduction=1, bottleneck=options.bottleneck, pooling="mean", backbone=str(backbone))
        model = convert(pretrained, config)
    tokenizer = load_tokenizer(backbone)
    if tokenizer is None:
        raise OptionError("{backbone} {name} has no tokenizer: save one with it", name=backbone)
    if options.truncation_side is not None:
        tokenizer.truncation_side = options.truncation_side
    own = longest(model.signature, tokenizer).max_length
    if options.max_length is not None and options.max_length > own:
        raise OptionError(
            "{max_length} {asked} is more than the {own} tokens that the backbone takes",
            asked=options.max_length,
            own=own,
        )
    if not options.delta:  # which runs at its backbone's own
        tokenizer.model_max_length = options.max_length or min(own, _LONGEST)
    model.signature = longest(model.signature, tokenizer)
    return model, tokenizer


@contextmanager
def _run(output: Path, data: _Data, options: TrainOptions, model: CodaModel, left: Path | None) -> Iterator[Path]:
    """A folder beside the output that the same call finds again where there is something to go on from.

    Args:
        model: untrained.
        left: where routing keeps what its steps have finished.

    Raises:
        CheckpointError: there is something of another call.
    """
    parts = (data, options, model.coda_config, tensor_digest(model.state_dict()))
    folder = output.with_name(f".{output.name}.train")
    if left is not None and left.exists() and not folder.exists():  # or it would be found out behind training
        raise CheckpointError(f"{left} holds what steps of another run left when it was interrupted: remove it")
    with run_folder(folder, sha256(repr(parts).encode()).hexdigest()):
        try:
            yield folder
        except BaseException as error:
            if not (folder / _TRAINED).exists() and last_epoch(folder / _EPOCHS) is None:
                shutil.rmtree(folder / _EPOCHS, ignore_errors=True)  # holds no whole one
            elif isinstance(error, KeyboardInterrupt):
                raise interrupted(*(path for path in (folder, left) if path is not None and path.exists())) from None
            raise


def _fit(
    model: CodaModel,
    tokenizer: "PreTrainedTokenizerBase",
    data: _Data,
    options: TrainOptions,
    folder: Path,
    progress: Progress,
) -> float | None:
    """Train in place; see ``fit``.

    Raises:
        CodaError: what stands in the way, or a loss that is no number; then nothing is left to go on from.
    """
    labels, middle, spread = data.train_labels, 0.0, 1.0
    if data.problem_type == REGRESSION:  # numbers of any size, learned as ones about 0
        middle, spread = float(np.mean(labels)), float(np.std(labels)) or 1.0
        labels = [(value - middle) / spread for value in labels]
    tokens, pairs = model.signature.max_length, isinstance(data.train[0].text, tuple)
    rows = _rows(tokenizer, data.train, labels, tokens if pairs else tokens * 5 // 4)  # some of which may be dropped
    recipe, collator = _recipe(options, tokens, pairs), TextCollator(tokenizer, tokens)
    try:
        seconds = fit(model, recipe, rows, collator, reduction=1, folder=folder, seed=options.seed, progress=progress)
    except OptionError:  # it would diverge again
        shutil.rmtree(folder)
        raise
    if data.problem_type == REGRESSION:
        _rescale(model, middle, spread)
    return seconds


def _recipe(options: TrainOptions, tokens: int, pairs: bool) -> Recipe:
    """``DENSE``, for texts of so many tokens; a pair is left as it is, for each of its texts has its place."""
    recipe = replace(
        DENSE,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        stages=((max(1, tokens // 2), 0.4), (tokens, 1.0)),
    )
    return replace(recipe, stages=((tokens, 1.0),), drop=0.0, splice=0.0) if pairs else recipe


def _rows(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], labels: Sequence[Any], most: int
) -> list[dict[str, Any]]:
    """What ``fit`` takes: token ids, of pairs their types where the tokenizer has some, and labels."""
    made = tokenizer(**columns([row.text for row in rows]), truncation=True, max_length=most, verbose=False)
    names = [IDS, TYPES] if TYPES in made and isinstance(rows[0].text, tuple) else [IDS]
    parts = [dict(zip(names, ids, strict=True)) for ids in zip(*(made[name] for name in names), strict=True)]
    return [{**part, "labels": label} for part, label in zip(parts, labels, strict=True)]


@torch.no_grad()
def _rescale(model: CodaModel, middle: float, spread: float) -> None:
    """Have a head that gives numbers about 0 give them as they were, in place."""
    assert model.head is not None
    last = [module for module in model.head.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.weight.mul_(spread)
    last.bias.mul_(spread).add_(middle)
