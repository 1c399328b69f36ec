"""Nine ways to teach an encoder CLINC150's intents, each by the library that its users take and saved as it saves.

Every way sees the same queries in batches of 32 for five epochs, by transformers' Trainer. CoDA goes on from its own
dense adapter for another five, taught by it, as in ``coda_models.training.recipe``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, set_seed

from coda_models import CodaConfig, convert, load, save
from coda_models.backbone import load_backbone
from coda_models.training.collator import TextCollator
from coda_models.training.train import CodaTrainer, logits_of, soft_labelled, training_arguments

TOKENS = 64  # more than any query has
EPOCHS = 5
BATCH = 32
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What is learned: rows of ``input_ids`` and ``labels``, and the names of the classes."""

    tokenizer: PreTrainedTokenizerBase
    train: Rows
    validation: Rows
    classes: list[str]

    @property
    def names(self) -> dict[str, Any]:
        """The classes as transformers' configurations have them."""
        return {
            "id2label": dict(enumerate(self.classes)),
            "label2id": {name: i for i, name in enumerate(self.classes)},
        }


@dataclass(frozen=True)
class Method:
    """One way to teach.

    Attributes:
        rate: peak of AdamW's linear schedule.
        make: an untrained model of a backbone.
        save: writes what was learned as users have it on disk.
        reduction: r of a CoDA model that goes on from ``coda r=1``.
        attention: what its routed tokens attend to.
    """

    rate: float
    make: Callable[[str, Task], Any]
    save: Callable[[Any, Path, Task], None]
    reduction: int = 1
    attention: str = "k_to_k"


def _full(backbone: str, task: Task) -> Any:
    return load_backbone(backbone, "sequence-classification", **task.names)


def _save_pretrained(model: Any, path: Path, task: Task) -> None:
    model.save_pretrained(path)
    task.tokenizer.save_pretrained(path)


def _peft(backbone: str, task: Task) -> Any:
    import peft

    config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, modules_to_save=["pooler"])
    return peft.get_peft_model(_full(backbone, task), config)


def _adapterhub(config: Callable[[Any], Any]) -> Callable[[str, Task], Any]:
    def make(backbone: str, task: Task) -> Any:
        import adapters

        model = adapters.AutoAdapterModel.from_pretrained(backbone)
        model.add_adapter("intents", config=config(adapters))
        model.add_classification_head("intents", num_labels=len(task.classes), id2label=task.names["id2label"])
        model.train_adapter("intents")
        return model

    return make


def _save_adapter(model: Any, path: Path, task: Task) -> None:
    model.save_adapter(str(path), "intents")


def _coda(backbone: str, task: Task) -> Any:
    # This encoder was pretrained for the mean of its tokens; its first one never learned to sum up.
    config = CodaConfig(reduction=1, pooling="mean", backbone="sentence-transformers/all-MiniLM-L6-v2")
    return convert(load_backbone(backbone, "sequence-classification", **task.names), config)


def _save_coda(model: Any, path: Path, task: Task) -> None:
    path.mkdir()
    save(model, path / "model.pt", tokenizer=task.tokenizer, delta=True)


DENSE = "coda r=1"
METHODS: dict[str, Method] = {
    "full fine-tuning": Method(2e-4, _full, _save_pretrained),
    "houlsby": Method(
        1e-3, _adapterhub(lambda adapters: adapters.DoubleSeqBnConfig(reduction_factor=6)), _save_adapter
    ),
    "parallel": Method(1e-3, _adapterhub(lambda adapters: adapters.ParBnConfig(reduction_factor=6)), _save_adapter),
    "lora": Method(2e-3, _peft, _save_pretrained),
    "prefix-tuning": Method(2e-3, _adapterhub(lambda adapters: adapters.PrefixTuningConfig()), _save_adapter),
    DENSE: Method(1e-3, _coda, _save_coda),
    "coda r=2": Method(1e-3, _coda, _save_coda, reduction=2),
    "coda r=2 k-to-all": Method(1e-3, _coda, _save_coda, reduction=2, attention="k_to_all"),
    "coda r=4": Method(1e-3, _coda, _save_coda, reduction=4),
}


def source(folder: Path) -> Path:
    """What to compile of a folder that ``teach`` saved."""
    return folder / "model.pt" if (folder / "model.pt").is_file() else folder


def backbone_of(path: Path, backbone: str) -> str | None:
    """What goes with one of those: a fully fine-tuned model is whole."""
    return None if (path / "model.safetensors").is_file() else backbone


def teach(
    method: Method, task: Task, backbone: str, dense: Path, path: Path, seed: int, *, bf16: bool = False
) -> tuple[int, list[float]]:
    """Train by one method and save to a folder.

    Args:
        dense: what ``coda r=1`` saved for the same seed.
        bf16: multiply in bfloat16; weights stay float32.

    Returns:
        How many parameters were trained, and the accuracy on the validation queries after every epoch.
    """
    set_seed(seed)
    rows, trainer_class = task.train, Trainer
    collator = TextCollator(task.tokenizer, TOKENS)
    if method.reduction > 1:
        model, teacher = (load(source(dense), backbone=backbone).model for _ in "ab")
        model.set_reduction(method.reduction)
        model.set_attention(method.attention)
        rows, trainer_class = soft_labelled(teacher, rows, collator, batch=BATCH), CodaTrainer
    else:
        model = method.make(backbone, task)
    seen = _Validation(task.validation, collator)
    with TemporaryDirectory(prefix="coda-study-") as folder:
        arguments = training_arguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=method.rate,
            warmup_ratio=0.05,
            group_by_length=True,
            seed=seed,
            bf16=bf16,
            save_strategy="no",
            logging_steps=200,
            disable_tqdm=True,
        )
        trainer_class(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[seen]).train()
    model.cpu().eval()
    method.save(model, path, task)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), seen.accuracies


class _Validation(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Accuracy on the validation queries after every epoch."""

    def __init__(self, rows: Rows, collator: TextCollator) -> None:
        self._rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        self._collator = collator
        self.accuracies: list[float] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        answers = logits_of(model, self._rows, self._collator, batch=BATCH).argmax(-1).tolist()
        model.train()
        right = sum(answer == row["labels"] for answer, row in zip(answers, self._rows, strict=True))
        self.accuracies.append(right / len(self._rows))
