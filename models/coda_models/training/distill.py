"""Steps of distillation that bring a routed model nearer to the dense one, on texts without labels."""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from coda_models.digest import tensor_digest
from coda_models.errors import CheckpointError, ConfigError
from coda_models.fitting.answers import distance, rows_of_answers
from coda_models.fitting.batches import Batches, Progress, Walk, at_r_1, check_finite, evaluating, silent
from coda_models.model import CodaModel
from coda_models.training.run_folder import run_folder
from coda_models.training.train import CodaTrainer, set_apart, training_arguments
from coda_ops.errors import first_line
from coda_ops.foreign_json import json_object

_WANTED = "wanted"  # the dense model's answers, among a batch's inputs
_FITTED = (".stand_in.", ".key_value.")  # of layers, in names of parameters


@dataclass(frozen=True)
class Steps:
    """The parameters of distillation.

    Attributes:
        rate: peak of AdamW's linear schedule, for routers, norms, head and adapters.
        fitted_rate: for stand-ins and thin keys and values, which regression has brought close already.
        warmup: the share of all steps over which rates rise.
        evaluations: how often the loss on texts kept aside is looked at, at most.
        patience: how many of them without a new best end it.
    """

    rate: float = 1e-4
    fitted_rate: float = 2e-5
    warmup: float = 0.1
    evaluations: int = 10
    patience: int = 3


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    Attributes:
        best: the step that the weights are of; 0 for those that it began with.
        before, after: the loss on texts kept aside of the first weights, and of the best.
        diverged: the step whose loss was NaN or infinite, where one was.
    """

    best: int
    before: float
    after: float
    diverged: int | None = None


class _DivergedError(Exception):
    """A loss that is NaN or infinite."""


def distill(
    model: CodaModel,
    teacher: CodaModel,
    batches: Batches,
    *,
    aside: Batches,
    steps: int,
    folder: Path,
    recipe: Steps = Steps(),
    seed: int = 0,
    progress: Progress = silent,
) -> Distilled:
    """Train a routed model on a dense one's answers, in place, and leave it with the best weights of all steps.

    A step takes one batch, in an order drawn by the seed; what is trained is ``trainable_names``, without dropout. The
    loss is the distance of ``coda_models.fitting.answers``. The dense model is asked once for each text. Runs on the
    GPU where there is one.

    Args:
        model: routed; best one that was fitted in closed form. In evaluation mode, on its former device afterwards.
        teacher: what it was made from, run at r = 1.
        batches: inputs by name, of about 16 texts each.
        aside: other texts, whose loss says which weights are the best and when to stop.
        steps: at most.
        folder: new or empty; holds the last state while it lasts, and goes with it. A run that was interrupted goes on
            from there, to the bit.
        progress: told of steps done, and of how many.

    Raises:
        ConfigError: no steps or no texts, or a dense model whose answers are NaN.
        CheckpointError: the folder holds something else than an earlier run of this, or is damaged.
    """
    if steps < 1:
        raise ConfigError(f"{steps} steps are none: give 1 or more")
    texts = (batches, aside)
    with run_folder(folder, _identity(model, teacher, texts, steps, recipe, seed)), _set_up(model):
        return _run(model, teacher, texts, steps, folder, recipe, seed, progress)


def _run(
    model: CodaModel,
    teacher: CodaModel,
    texts: tuple[Batches, Batches],
    steps: int,
    folder: Path,
    recipe: Steps,
    seed: int,
    progress: Progress,
) -> Distilled:
    arguments = _arguments(folder, steps, recipe, seed)
    taught, judged = (_taught(teacher, given, arguments.device) for given in texts)
    told = _Told(progress)
    trainer = _Distiller(
        model=model,
        args=arguments,
        data_collator=_only,
        train_dataset=_drawn(taught, steps, seed),
        eval_dataset=judged,
        callbacks=[EarlyStoppingCallback(recipe.patience), told],
        router_rate=1.0,
        fitted_rate=recipe.fitted_rate,
    )
    trainer.remove_callback(PrinterCallback)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    told.before = before = float(trainer.evaluate()["eval_loss"])
    last, diverged = _last_whole(folder), None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "mtime may not be reliable")  # of states a moment apart
            trainer.train(resume_from_checkpoint=last)
    except _DivergedError:
        diverged = trainer.state.global_step + 1
    except Exception as error:  # each file of a state has a library of its own
        if last is None or told.going:
            raise
        raise CheckpointError(f"{last} is damaged ({first_line(error)}): remove {folder} to begin anew") from error
    best = trainer.state.best_model_checkpoint
    model.load_state_dict(
        start if best is None else safetensors.torch.load_file(folder / Path(best).name / SAFE_WEIGHTS_NAME),
        strict=False,
    )
    return Distilled(trainer.state.best_global_step or 0, before, float(trainer.state.best_metric), diverged)


def _arguments(folder: Path, steps: int, recipe: Steps, seed: int) -> TrainingArguments:
    every = ceil(steps / recipe.evaluations)
    arguments = training_arguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=1,  # one batch of ours
        per_device_eval_batch_size=1,
        learning_rate=recipe.rate,
        warmup_ratio=recipe.warmup,
        max_grad_norm=1.0,
        seed=seed,
        label_names=[_WANTED],
        prediction_loss_only=True,
        logging_strategy="no",
        disable_tqdm=True,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,  # beside the best
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # how long it has been without a new best
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would each be given a batch
    return arguments


@torch.no_grad()
def _taught(teacher: CodaModel, batches: Batches, device: torch.device) -> list[dict[str, Tensor]]:
    """Batches with the dense model's answers, on the CPU."""
    own = next(teacher.parameters()).device
    taught = []
    with evaluating(teacher), at_r_1(teacher):
        teacher.to(device)
        try:
            for inputs in Walk(teacher, batches):
                wanted = rows_of_answers(teacher, teacher(**inputs), teacher.mask(inputs))
                check_finite("the dense model", wanted)
                taught.append({name: tensor.cpu() for name, tensor in {**inputs, _WANTED: wanted}.items()})
        finally:
            teacher.to(own)
    return taught


def _only(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    (row,) = rows
    return row


def _drawn(batches: Sequence[dict[str, Tensor]], steps: int, seed: int) -> list[dict[str, Tensor]]:
    """For each step a batch, shuffled anew whenever all have had their turn."""
    draw = random.Random(seed)
    rounds = (draw.sample(batches, len(batches)) for _ in range(ceil(steps / len(batches))))
    return [batch for one in rounds for batch in one][:steps]


class _Distiller(CodaTrainer):
    """CodaTrainer on the distance from the dense model's answers.

    Args:
        fitted_rate: of what ``_FITTED`` names.
    """

    def __init__(self, *args: Any, fitted_rate: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fitted_rate = fitted_rate

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """CodaTrainer's optimizer, what was fitted in a group of its own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            named = self.model.named_parameters()
            set_apart(optimizer, [p for name, p in named if any(part in name for part in _FITTED)], self._fitted_rate)
        return optimizer

    def compute_loss(self, model: CodaModel, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The distance; while training it must be finite."""
        given = {name: tensor for name, tensor in inputs.items() if name != _WANTED}
        output = model(**given)
        loss = distance(model, inputs[_WANTED], rows_of_answers(model, output, model.mask(given)))
        if model.training and not bool(loss.isfinite()):
            raise _DivergedError
        return (loss, output) if return_outputs else loss

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)  # it is drawn already


class _Told(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Says how many steps are done.

    Attributes:
        before: the loss that any weights have to be below to be the best.
        going: whether a step has begun, and so whatever was to be read has been.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self.before, self.going = progress, float("inf"), False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The weights that it begins with are the best so far."""
        if state.best_metric is None:
            state.best_metric = self.before
        self._progress("steps", state.global_step, state.max_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note that it goes on."""
        self.going = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell."""
        self._progress("steps", state.global_step, state.max_steps)


def _last_whole(folder: Path) -> str | None:
    """The newest state in a folder; its trainer_state.json is written last, so without one it is not whole."""
    states = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if json_object(path / TRAINER_STATE_NAME)]
    return str(max(states, key=lambda path: int(path.name.rpartition("-")[2]))) if states else None


def _identity(model: CodaModel, teacher: CodaModel, texts: tuple[Batches, Batches], *options: Any) -> str:
    """A digest of all that the result depends on."""
    digests = [tensor_digest(one.state_dict()) for one in (model, teacher)]
    digests += [",".join(tensor_digest(batch) for batch in batches) for batches in texts]
    return sha256(repr((digests, options)).encode()).hexdigest()


@contextmanager
def _set_up(model: CodaModel) -> Iterator[None]:
    """What CoDA trains is trained, without dropout; afterwards a model is as it was, and in evaluation mode."""
    device = next(model.parameters()).device
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    attentions = [(layer.block.attention, layer.block.attention.dropout) for layer in model.coda_layers()]
    model.freeze_backbone()
    for module, _ in dropouts:
        module.p = 0.0
    for attention, _ in attentions:
        attention.dropout = 0.0
    try:
        yield
    finally:
        for parameter, was in trained:
            parameter.requires_grad_(was)
        for module, share in dropouts:
            module.p = share
        for attention, share in attentions:
            attention.dropout = share
        model.to(device).eval()
