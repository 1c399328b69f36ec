"""Plain Hugging Face folders: fully fine-tuned encoders, without routers or adapters."""

import json
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

from coda_compile.errors import CompileError
from coda_compile.logits import cross_encoder_keys
from coda_compile.sources import Source
from coda_compile.sources.reference import check_same, few_tokens, wanted_answers
from coda_models.architectures import FAMILIES
from coda_models.backbone import AUTO_CLASSES, load_backbone, load_tokenizer
from coda_models.checkpoint import check_finite
from coda_models.config import CodaConfig
from coda_models.conversion import convert
from coda_models.errors import UnsupportedModelError

TASK_OF_HEAD = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "Model": "feature-extraction",
    "ForMaskedLM": "feature-extraction",
}


def read(folder: Path) -> Source:
    """Load a folder that ``save_pretrained`` of transformers wrote.

    Raises:
        CompileError: a config.json that is none.
        UnsupportedModelError: another architecture, or a head that no task here has.
    """
    try:
        plain = json.loads((folder / "config.json").read_text("utf-8"))
        architecture = str((plain.get("architectures") or [""])[0])
        family = str(plain.get("model_type"))
    except (OSError, ValueError, AttributeError, TypeError, LookupError):
        raise CompileError(f"{folder / 'config.json'} is not a Hugging Face configuration") from None
    if family not in FAMILIES:
        raise UnsupportedModelError(f"model type {family!r} is not supported: use one of {', '.join(FAMILIES)}")
    head = next((head for head in TASK_OF_HEAD if architecture.endswith(head)), None)
    if head is None:
        known = ", ".join(sorted(set(TASK_OF_HEAD.values())))
        raise UnsupportedModelError(f"the head of {architecture or 'this model'} is not supported: tasks are {known}")
    if architecture not in (standard := _standard_classes(family, head)):
        raise UnsupportedModelError(
            f"{architecture} in {folder / 'config.json'} is no class of transformers' own, so what it computes is not "
            f"known: {', '.join(standard)} would be"
        )
    task = TASK_OF_HEAD[head]
    pooling = read_pooling(folder) if task == "feature-extraction" else None
    config = CodaConfig(reduction=1, bottleneck=0, task=task, pooling=pooling)
    pretrained = load_backbone(folder, task, trained=True)
    inputs = few_tokens(pretrained.config, padded=True)
    wanted = wanted_answers(pretrained, inputs, "transformers")  # before its modules become ours
    model = convert(pretrained, config)
    check_finite(model.state_dict(), folder)
    if task == "sequence-classification":
        model.hf_config.update(cross_encoder_keys(folder, plain))
    check_same(model, inputs, wanted, "transformers")
    return Source("Hugging Face model", model, load_tokenizer(folder))


def _standard_classes(family: str, head: str) -> list[str]:
    """transformers' classes with a head, of the model types that are built alike."""
    auto = AutoModelForMaskedLM if head == "ForMaskedLM" else AUTO_CLASSES[TASK_OF_HEAD[head]]
    alike = [kind for kind, module in FAMILIES.items() if module == FAMILIES[family]]
    return [auto._model_mapping[CONFIG_MAPPING[kind]].__name__ for kind in alike]


def read_pooling(folder: Path) -> str:
    """What a sentence-transformers folder says of its pooling; the mean where it says nothing."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    try:
        plain = json.loads(path.read_text("utf-8"))
        return "first" if plain.get("pooling_mode_cls_token") else "mean"
    except (OSError, ValueError, AttributeError):
        raise CompileError(f"{path} is damaged: it should say how sentences are pooled") from None
