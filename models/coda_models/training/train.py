"""Training with transformers' Trainer: annealing or drawing r, growing length, distilling from the dense adapter."""

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from coda_models.checkpoint import write_folder_config
from coda_models.config import Reduction, parse_reduction
from coda_models.errors import ConfigError
from coda_models.model import CodaModel
from coda_models.training.collator import SOFT, TextCollator
from coda_targets.modalities.text import IDS, MASK, TYPES


class AnnealReduction(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Raise r linearly from 1 to its target, then hold (Lei et al. 2023, section 5).

    Args:
        model: the model being trained; starts dense.
        target: r, one or one for each layer.
        over: the fraction of all steps that annealing takes.
    """

    def __init__(self, model: CodaModel, target: Reduction | Sequence[Reduction], over: float = 0.5) -> None:
        if not 0 < over <= 1:
            raise ConfigError(f"annealing over {over} of the steps is impossible: give a fraction in (0, 1]")
        self._model = model
        self._targets = model.coda_config.with_reduction(target).layer_reductions(len(model.layers))
        self._final = target
        self._over = over

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set r for the step about to run."""
        progress = min(1.0, state.global_step / max(1, state.max_steps * self._over))
        if progress >= 1:
            self._model.set_reduction(self._final)
        else:
            self._model.set_reduction([annealed(target, progress) for target in self._targets])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the model at its target, however short training was."""
        self._model.set_reduction(self._final)


def annealed(target: Fraction, progress: float) -> Fraction:
    """r after a fraction of the annealing, in eighths so that few distinct shapes occur."""
    return 1 + Fraction(round(progress * 8), 8) * (target - 1)


class DrawReduction(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Draw r anew for every step, so that one model learns to run at all of them.

    Args:
        model: the model being trained.
        reductions: what is drawn from, evenly; the draw of a step depends on the run's seed and the step alone.
        final: r that the model is left at, one or one for each layer.
    """

    def __init__(
        self, model: CodaModel, reductions: Sequence[Reduction], final: Reduction | Sequence[Reduction]
    ) -> None:
        if not reductions:
            raise ConfigError("there are no reductions to draw from: give at least one")
        self._model = model
        self._reductions = [parse_reduction(r) for r in reductions]
        self._final = final

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set r for the step about to run."""
        self._model.set_reduction(random.Random(f"{args.seed}:{state.global_step}").choice(self._reductions))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the model at its target."""
        self._model.set_reduction(self._final)


@torch.inference_mode()
def logits_of(model: nn.Module, rows: Sequence[dict[str, Any]], collator: TextCollator, *, batch: int = 8) -> Tensor:
    """What a model says to rows, none of them changed. [rows, labels], float32, on the CPU.

    The model is left in evaluation mode, on the GPU where there is one.
    """
    device, collator = torch.device("cuda" if torch.cuda.is_available() else "cpu"), collator.plain()
    model.eval().to(device)
    parts = []
    for start in range(0, len(rows), batch):
        inputs = collator(rows[start : start + batch])
        output = model(**{name: inputs[name].to(device) for name in (IDS, MASK, TYPES) if name in inputs})
        parts.append(output.logits.float().cpu())
    return torch.cat(parts)


def soft_labelled(
    teacher: CodaModel, rows: Sequence[dict[str, Any]], collator: TextCollator, *, batch: int = 8
) -> list[dict[str, Any]]:
    """Rows with the teacher's logits for each: asked once, it need not run beside the student in every epoch."""
    logits = logits_of(teacher, rows, collator, batch=batch).tolist()
    return [{**row, SOFT: soft} for row, soft in zip(rows, logits, strict=True)]


def training_arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    """Trainer's arguments for rows and collators of this module: it keeps their columns, and reports to nobody."""
    return TrainingArguments(
        output_dir=str(folder),
        weight_decay=0.01,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        **options,
    )


class GrowLength(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Train short, finish long: most of what a task needs is learned on short inputs at a fraction of the cost.

    Args:
        collator: its ``tokens`` is what grows.
        stages: (tokens, until) pairs in order; ``until`` is the fraction of all steps at which a stage ends.
    """

    def __init__(self, collator: TextCollator, stages: Sequence[tuple[int, float]]) -> None:
        self._collator = collator
        self._stages = stages
        collator.tokens = stages[0][0]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the length for the batches that follow."""
        done = state.global_step / max(1, state.max_steps)
        self._collator.tokens = next((n for n, until in self._stages if done < until), self._stages[-1][0])


def set_apart(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], rate: float) -> None:
    """Let some parameters learn at a rate of their own, without weight decay."""
    apart = set(parameters)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in apart]
    if parameters:
        optimizer.add_param_group({"params": list(parameters), "lr": rate, "weight_decay": 0.0})


class CodaTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types here
    """Trainer for routed models, with optional distillation from the dense adapter model of the same task.

    At a small ε a gate answers a score's change by 1 / ε times as much. So routers learn at a rate of their own, and
    their gradients are clipped apart: within one norm they would shrink everyone else's.

    Args:
        teacher: the same task at r = 1, or ``None``; rows that ``soft_labelled`` made bring its answers with them.
        distillation: weight of the teacher's soft labels against the true ones, in [0, 1].
        temperature: of both distributions; the loss is scaled by its square (Hinton et al. 2015).
        hidden: weight of the mean squared distance between both models' states after every layer, over valid tokens.
        router_rate: the routers' learning rate, as a fraction of everyone else's.
        router_norm: the largest norm of a router's gradient.
    """

    def __init__(
        self,
        *args: Any,
        teacher: CodaModel | None = None,
        distillation: float = 0.5,
        temperature: float = 2.0,
        hidden: float = 0.0,
        router_rate: float = 0.1,
        router_norm: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._teacher = teacher if distillation or hidden else None  # or it would run for nothing
        self._distillation = distillation
        self._temperature = temperature
        self._hidden = hidden
        self._router_rate = router_rate
        self._router_norm = router_norm
        self._routers = [p for name, p in self.model.named_parameters() if ".router." in name and p.requires_grad]
        if self._teacher is not None:
            self._teacher.eval().to(self.args.device)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's optimizer, the routers in a group of their own."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            set_apart(optimizer, self._routers, self.args.learning_rate * self._router_rate)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's step, the routers' gradients clipped before everyone's are."""
        loss: Tensor = super().training_step(*args, **kwargs)
        for router in self._routers:
            torch.nn.utils.clip_grad_norm_(router, self._router_norm)
        return loss

    def compute_loss(self, model: CodaModel, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Cross-entropy, mixed with the divergence from the teacher where there is one."""
        inputs = dict(inputs)
        soft = inputs.pop(SOFT, None)
        taught = self._teacher is not None and model.training
        output = model(**inputs, output_hidden_states=taught and self._hidden > 0)
        loss = output.loss
        if taught:
            assert self._teacher is not None
            unlabelled = {name: tensor for name, tensor in inputs.items() if name != "labels"}
            with torch.no_grad(), self.accelerator.autocast():  # Trainer wraps its own model alone
                wanted = self._teacher(**unlabelled, output_hidden_states=self._hidden > 0)
            soft = wanted.logits
        if soft is not None and model.training:
            loss = (1 - self._distillation) * loss + self._distillation * self._divergence(output.logits, soft)
        if taught and self._hidden > 0:
            valid = model.mask(inputs)
            pairs = zip(output.hidden_states[1:], wanted.hidden_states[1:], strict=True)
            loss = loss + self._hidden * torch.stack([F.mse_loss(a[valid], b[valid]) for a, b in pairs]).mean()
        return (loss, output) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Trainer's folder, which is a checkpoint folder as well: ``from_pretrained`` and ``coda-compile`` read it."""
        super()._save(output_dir, state_dict)
        write_folder_config(self.model, Path(output_dir or self.args.output_dir))

    def _divergence(self, logits: Tensor, soft: Tensor) -> Tensor:
        """Of the student's distribution from the teacher's, both at the temperature."""
        own, wanted = (F.log_softmax(x / self._temperature, -1) for x in (logits, soft))
        return self._temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)
