"""Pretrained Hugging Face encoders: from a folder, the local hub cache or the hub, or built from a config alone."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from coda_models.errors import BackboneError

AUTO_CLASSES: dict[str, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "feature-extraction": AutoModel,
}


def build(config: PretrainedConfig, task: str) -> PreTrainedModel:
    """An untrained encoder of a known shape, to be filled with a checkpoint's tensors."""
    with torch.random.fork_rng():
        model: PreTrainedModel = AUTO_CLASSES[task].from_config(config)
    return model.float().eval()


def load_backbone(
    source: Path | str, task: str, *, hf_config: PretrainedConfig | None = None, **options: Any
) -> PreTrainedModel:
    """A pretrained encoder with the head of a task, in float32.

    Args:
        source: a folder, or a hub name that is looked up in the local cache first and then on the hub.
        hf_config: the configuration to load it with; by default the encoder's own, changed by ``options``.

    Raises:
        BackboneError: not found, or unreadable.
    """
    config = hf_config or _attempt(source, AutoConfig.from_pretrained, **options)
    model: PreTrainedModel = _attempt(source, AUTO_CLASSES[task].from_pretrained, config=config)
    return model.float().eval()


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside an encoder, or ``None`` where there is none."""
    if Path(source).is_dir() and not any(
        (Path(source) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    ):
        return None
    tokenizer: PreTrainedTokenizerBase = _attempt(source, AutoTokenizer.from_pretrained)
    return tokenizer


def _attempt(source: Path | str, load: Any, **options: Any) -> Any:
    """Load offline, then online where the source may be a hub name; never run code that comes with it."""
    local = Path(source).exists()
    last: Exception | None = None
    for offline in (True,) if local else (True, False):
        try:
            return load(str(source), local_files_only=offline, trust_remote_code=False, **options)
        except Exception as error:  # transformers, tokenizers and safetensors each have their own kinds
            last = error
    reason = (str(last).strip() or type(last).__name__).splitlines()[0]
    if local:
        raise BackboneError(f"the backbone in {source} cannot be read: {reason}") from last
    raise BackboneError(
        f"the backbone {source!r} is neither a folder, nor in the local hub cache, nor on a hub in reach: "
        "pass its folder with --backbone PATH"
    ) from last
