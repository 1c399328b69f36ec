"""The training recipe: first the dense adapter, then the routed model, which starts from it and distils it."""

import shutil
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from coda_models.config import Reduction
from coda_models.errors import CheckpointError
from coda_models.fitting.batches import Progress, silent
from coda_models.model import CodaModel
from coda_models.training.collator import TextCollator
from coda_models.training.train import (
    AnnealReduction,
    CodaTrainer,
    DrawReduction,
    GrowLength,
    soft_labelled,
    training_arguments,
)
from coda_models.training.watch import EVERY, Watch
from coda_ops.foreign_json import json_object

_MARK = "epochs-of-fit.txt"


@dataclass(frozen=True)
class Recipe:
    """The parameters of one training phase.

    Attributes:
        epochs: passes over the training texts.
        stages: (tokens, until) pairs for ``GrowLength``; ``until`` is a fraction of all steps.
        learning_rate: peak of AdamW's linear schedule.
        batch: texts a step.
        drop: the share of tokens left out of each training text, drawn anew every time it is seen.
        splice: the share of training texts whose first half gives way to a piece of another of the same label.
        dropout: the share of numbers that the backbone's own dropout takes; ``None`` leaves it as it was pretrained.
        hidden: weight of the distance from the dense adapter's states after every layer.
        distillation: weight of the dense adapter's soft labels against the true ones. Where states are left out, a list
            of texts is labelled once, whole, before anything is learned.
        anneal: the share of all steps over which r rises from 1 to its target; 0 holds it from the start.
        drawn: reductions of which each step takes one at random instead, so that the model learns to run at all of
            them.
    """

    epochs: float
    stages: tuple[tuple[int, float], ...]
    learning_rate: float
    batch: int = 16
    drop: float = 0.1
    splice: float = 0.0
    dropout: float | None = None
    hidden: float = 0.0
    distillation: float = 0.0
    anneal: float = 0.5
    drawn: tuple[Reduction, ...] = ()


# The ends of the reviews teach much of the task at a fraction of the cost; most of the steps see whole windows. Twelve
# slow epochs of spliced texts were best of ten ways in cross-validation of the training texts.
DENSE = Recipe(epochs=12, stages=((256, 0.4), (512, 1.0)), learning_rate=5e-4, splice=0.5, anneal=0.0)
# From there, taught by it. Routed steps cost a third or less, so there can be many; other texts keep them from learning
# by heart, dropout does not help.
ROUTED = Recipe(
    epochs=8,
    stages=((512, 1.0),),
    learning_rate=1e-3,
    batch=8,
    splice=0.5,
    dropout=0.0,
    distillation=0.5,
    anneal=0.0,
)


def fit(
    model: CodaModel,
    recipe: Recipe,
    data: Sequence[dict[str, Any]] | Dataset[dict[str, Any]],
    collator: TextCollator,
    *,
    reduction: Reduction | Sequence[Reduction],
    folder: Path,
    teacher: CodaModel | None = None,
    seed: int = 0,
    bf16: bool = False,
    quiet: bool = True,
    progress: Progress = silent,
) -> float | None:
    """Train a model in place and leave it at its reduction, on the CPU, in evaluation mode.

    Args:
        model: as ``convert`` made it, or a dense adapter model to go on from.
        data: rows of token ids, by the name of the model's input, and ``labels``: a class, a number, or a list of 1.0
            and 0.0 for each label.
        collator: its length and drop become the recipe's.
        reduction: r at the end, one or one for each layer.
        folder: new or empty; holds the last whole epoch while it lasts, and goes with it. A run that was interrupted
            goes on from there, to the bit.
        teacher: the dense adapter model; recipes that do not distil leave it alone.
        bf16: multiply in bfloat16.
        quiet: no progress bar.
        progress: told the epoch and the loss, steps done, and of how many.

    Returns:
        The seconds it took, ``None`` where it went on from an epoch of another time.

    Raises:
        CheckpointError: the folder holds something else than an earlier run of this.
        OptionError: the loss is no number any more; the last whole epoch stays in the folder.
    """
    _mark(folder)
    began, last = time.perf_counter(), last_epoch(folder)
    if teacher is not None and recipe.distillation and not recipe.hidden and not isinstance(data, Dataset):
        data, teacher = soft_labelled(teacher, data, collator.plain(recipe.stages[-1][0])), None
    if recipe.dropout is not None:
        _set_dropout(model, recipe.dropout)
    collator.drop, collator.splice = recipe.drop, recipe.splice
    callbacks: list[TrainerCallback] = [GrowLength(collator, recipe.stages), Watch(progress)]
    if recipe.drawn:
        callbacks.append(DrawReduction(model, recipe.drawn, reduction))
    elif recipe.anneal:
        callbacks.append(AnnealReduction(model, reduction, recipe.anneal))
    else:
        model.set_reduction(reduction)
    arguments = training_arguments(
        folder,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        warmup_steps=20,
        max_grad_norm=1.0,
        seed=seed,
        logging_steps=EVERY,
        logging_nan_inf_filter=False,
        save_strategy="epoch",
        save_total_limit=1,
        disable_tqdm=quiet,
        bf16=bf16,
    )
    trainer = CodaTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        callbacks=callbacks,
        teacher=teacher,
        hidden=recipe.hidden,
        distillation=recipe.distillation,
    )
    if quiet:
        trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():  # of epochs that last no second, which Trainer then sorts by their numbers
        warnings.filterwarnings("ignore", "mtime may not be reliable")
        trainer.train(resume_from_checkpoint=last)
    model.cpu().eval()
    _remove_epochs(folder)
    return time.perf_counter() - began if last is None else None


def last_epoch(folder: Path) -> str | None:
    """Where an interrupted run of ``fit`` left off; ``None`` before its first whole epoch. Parts of one are removed."""
    for epoch in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if json_object(epoch / TRAINER_STATE_NAME) is None:  # Trainer writes it last: this one was cut short
            shutil.rmtree(epoch)
    last: str | None = get_last_checkpoint(folder) if folder.is_dir() else None
    return last


def _mark(folder: Path) -> None:
    """Mark a new folder as one that ``fit`` made or was given empty."""
    if not (folder / _MARK).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{folder} holds something else than an interrupted run: give a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).write_text("An interrupted run of coda_models.training.recipe goes on here.\n", "utf-8")


def _remove_epochs(folder: Path) -> None:
    for epoch in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(epoch)
    (folder / _MARK).unlink()
    with suppress(OSError):  # somebody put more there
        folder.rmdir()


def _set_dropout(model: CodaModel, share: float) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
    for layer in model.coda_layers():
        layer.block.attention.dropout = share
