"""What a run says while it lasts, and the end of one whose loss is no number."""

from math import isfinite
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coda_models.fitting.batches import Progress, silent
from coda_ops.errors import OptionError

EVERY = 10  # steps, over which a loss is the mean


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Tell the epoch and the loss of the last steps, and stop before an epoch is saved that has learned nothing.

    Args:
        progress: told after every step.
    """

    def __init__(self, progress: Progress = silent) -> None:
        self._progress = progress
        self._loss = ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say how far training is."""
        steps = max(1, round(state.max_steps / args.num_train_epochs))  # of an epoch
        epoch = (state.global_step - 1) // steps + 1
        what = f"epoch {epoch} of {args.num_train_epochs:g}{self._loss}"
        self._progress(what, state.global_step, state.max_steps)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the loss before the epoch is saved."""
        control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Take the mean loss since the last look.

        Raises:
            OptionError: it is no number.
        """
        loss = logs.get("loss")
        if loss is None:
            return
        if not isfinite(loss):
            raise OptionError(
                "the loss is {loss} after step {step}: give a lower {learning_rate} than {rate:g}",
                loss=loss,
                step=state.global_step,
                rate=args.learning_rate,
            )
        self._loss = f", loss {loss:.3f}"
