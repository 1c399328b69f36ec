"""Where the parts of a Hugging Face encoder are: one small module a family, found by ``config.model_type``.

A family module has two functions: ``signature(config) -> Signature``, what the encoder takes, and
``parts(model, task) -> Parts``. One whose head for sequences may read something else than the first token has a third,
``pooling(config) -> str``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from coda_models.errors import UnsupportedModelError
from coda_models.layers.attention import RelativeBias
from coda_models.layers.layer import Block
from coda_targets.modalities.text import text_signature
from coda_targets.signature import Signature

FAMILIES = {  # the module of each model type
    "bert": f"{__name__}.bert",
    "roberta": f"{__name__}.roberta",
    "xlm-roberta": f"{__name__}.roberta",
    "distilbert": f"{__name__}.distilbert",
    "electra": f"{__name__}.electra",
    "modernbert": f"{__name__}.modernbert",
    "mpnet": f"{__name__}.mpnet",
    "roberta-prelayernorm": f"{__name__}.roberta_prelayernorm",
}


def register(model_type: str, module: str) -> None:
    """Have models of another type be taken apart by a module of any package.

    Args:
        model_type: as their configuration says, which transformers' AutoConfig knows.
        module: imported when such a model is converted, and by every process that measures one.
    """
    FAMILIES[model_type] = module


@dataclass(frozen=True)
class Parts:
    """A pretrained encoder taken apart.

    Attributes:
        embeddings: module from the signature's inputs, by their names and without the mask, to [batch, tokens, width];
            or a ``MaskedEmbeddings``, which takes the mask too and gives that of the tokens.
        blocks: the heavy layers, bottom first.
        head: module from hidden states to logits; ``None`` for feature extraction.
        signature: what the encoder takes, as far as its positions allow.
    """

    embeddings: nn.Module
    blocks: list[Block]
    head: nn.Module | None
    signature: Signature
    relative_bias: RelativeBias | None = None
    final_norm: nn.Module | None = None


class FirstToken(nn.Module):
    """[batch, tokens, width] -> [batch, width]: the state of the first token."""

    def forward(self, x: Tensor) -> Tensor:
        """Take position 0."""
        return x.select(1, 0)


def choose_head(model: Any, task: str, sequence: Callable[[], nn.Module]) -> nn.Module | None:
    """A model's own head for a task, or ``None`` for feature extraction.

    Args:
        sequence: gives the head for sequence classification, which differs between families; the one for tokens does
            not.
    """
    if task == "sequence-classification":
        return sequence()
    return nn.Sequential(model.dropout, model.classifier) if task == "token-classification" else None


def text_inputs(config: Any, max_length: int) -> Signature:
    """What a family of text encoders takes; a table of token types with one row tells none apart."""
    types = getattr(config, "type_vocab_size", 1)  # DistilBERT and MPNet have none
    padding = int(config.pad_token_id or 0)
    return text_signature(
        int(config.vocab_size), int(max_length), padding=padding, types=int(types) if types > 1 else None
    )


def after_padding(config: Any) -> int:
    """Longest input of the families whose positions start behind the padding id.

    Raises:
        UnsupportedModelError: there is no such id.
    """
    if config.pad_token_id is None:
        raise UnsupportedModelError(
            f"this {config.model_type} model has no pad_token_id in config.json, behind which its positions begin"
        )
    return int(config.max_position_embeddings - config.pad_token_id - 1)


def take_apart(model: PreTrainedModel, task: str) -> Parts:
    """The parts of a supported encoder.

    Raises:
        UnsupportedModelError: a family without a routed form; the message names those that have one.
    """
    parts: Parts = _module(model.config.model_type).parts(model, task)
    return parts


def signature_of(config: PretrainedConfig) -> Signature:
    """What an encoder of a configuration takes.

    Raises:
        UnsupportedModelError: as for ``take_apart``.
    """
    signature: Signature = _module(config.model_type).signature(config)
    return signature


def pooling_of(config: PretrainedConfig) -> str:
    """What of a sequence the head for its classification reads, one of ``coda_models.sentence.POOLINGS``.

    Raises:
        UnsupportedModelError: as for ``take_apart``.
    """
    own = getattr(_module(config.model_type), "pooling", None)
    return "first" if own is None else str(own(config))


def _module(model_type: str) -> Any:
    if model_type not in FAMILIES:
        raise UnsupportedModelError(f"model type {model_type!r} is not supported: use one of {', '.join(FAMILIES)}")
    return import_module(FAMILIES[model_type])
