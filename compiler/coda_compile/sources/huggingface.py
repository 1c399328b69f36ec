"""Folders of transformers and sentence-transformers: fully fine-tuned encoders, without routers or adapters."""

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

from coda_compile.errors import CompileError
from coda_compile.logits import cross_encoder_keys
from coda_compile.sources.reference import check_same, few_tokens, wanted_answers
from coda_compile.sources.sentence import (
    MODULES,
    Sentence,
    is_sentence,
    read_sentence,
    refuse_other_models,
    transformer_of,
)
from coda_compile.sources.torch_model import TorchModel
from coda_compile.sources.truncation import read_truncation
from coda_models.architectures import FAMILIES, pooling_of, signature_of
from coda_models.backbone import AUTO_CLASSES, load_backbone, load_tokenizer
from coda_models.checkpoint import check_finite
from coda_models.config import CodaConfig
from coda_models.conversion import convert
from coda_models.errors import UnsupportedModelError
from coda_ops.errors import shown
from coda_ops.foreign_json import read_json

TASK_OF_HEAD = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "Model": "feature-extraction",
    "ForMaskedLM": "feature-extraction",
}


def read(folder: Path) -> TorchModel:
    """Load a folder that ``save_pretrained`` of transformers or of sentence-transformers wrote.

    Raises:
        CompileError: a config.json that is none, or another damaged file.
        UnsupportedModelError: another architecture, or a head or module that no task here has.
    """
    refuse_other_models(folder)
    embeds = is_sentence(folder)
    transformer = transformer_of(folder) if embeds else folder
    task = _task(transformer, embeds=embeds)
    sentence = read_sentence(folder) if task == "feature-extraction" else None
    pretrained = load_backbone(transformer, task, trained=True)
    settings = of_task(task, pretrained.config) if sentence is None else sentence.settings
    inputs = few_tokens(signature_of(pretrained.config), padded=True)
    wanted = wanted_answers(pretrained, inputs, "transformers")  # before its modules become ours
    model = convert(pretrained, CodaConfig(reduction=1, bottleneck=0, **settings))
    tokenizer = load_tokenizer(transformer)
    if sentence is None:
        read_truncation(folder, task, stands=(folder / MODULES).is_file()).apply(model, tokenizer)
        if task == "sequence-classification":
            model.hf_config.update(cross_encoder_keys(folder, model.hf_config.to_dict()))
    else:
        sentence.complete(model, tokenizer)
    check_finite(model.state_dict(), folder)
    check_same(model, inputs, wanted, "transformers")
    return TorchModel(_kind(sentence), model, tokenizer, {} if sentence is None else sentence.about)


def of_task(task: str, config: Any) -> dict[str, Any]:
    """Settings of a ``CodaConfig`` for a task: a head for sequences reads what the model's own does."""
    return {"task": task, **({"pooling": pooling_of(config)} if task == "sequence-classification" else {})}


def _task(folder: Path, *, embeds: bool) -> str:
    """What a transformer is for, by its head, unless modules make embeddings of what lies below it."""
    path = folder / "config.json"
    plain = read_json(path, dict, "it should be a Hugging Face configuration", CompileError)
    named = plain.get("architectures") or []
    if not isinstance(named, list):
        raise CompileError(f"{path} is damaged: its architectures should be a list")
    architecture, family = str((named or [""])[0]), str(plain.get("model_type"))
    if family not in FAMILIES:
        raise UnsupportedModelError(f"model type {shown(family)} is not supported: use one of {', '.join(FAMILIES)}")
    if embeds:
        return "feature-extraction"
    if not architecture:
        raise UnsupportedModelError(
            f"{path} names no architectures, so nothing says what the model is for: write there the class that was "
            'trained, as "architectures": ["BertForSequenceClassification"]'
        )
    head = next((head for head in TASK_OF_HEAD if architecture.endswith(head)), None)
    if head is None:
        known = ", ".join(sorted(set(TASK_OF_HEAD.values())))
        raise UnsupportedModelError(f"the head of {architecture} is not supported: tasks are {known}")
    if architecture not in (standard := _standard_classes(family, head)):
        raise UnsupportedModelError(
            f"{architecture} in {path} is no class of transformers' own, so what it computes is not "
            f"known: {', '.join(standard)} would be"
        )
    return TASK_OF_HEAD[head]


def _standard_classes(family: str, head: str) -> list[str]:
    """transformers' classes with a head, of the model types that are built alike."""
    auto = AutoModelForMaskedLM if head == "ForMaskedLM" else AUTO_CLASSES[TASK_OF_HEAD[head]]
    alike = [kind for kind, module in FAMILIES.items() if module == FAMILIES[family]]
    return [auto._model_mapping[CONFIG_MAPPING[kind]].__name__ for kind in alike]


def _kind(sentence: Sentence | None) -> str:
    return f"Hugging Face model{'' if sentence is None else sentence.note}"
