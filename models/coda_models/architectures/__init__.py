"""Where the parts of a Hugging Face encoder are: one small module a family, found by ``config.model_type``.

A family module is named after its model type and has one function, ``parts(model, task) -> Parts``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from coda_models.errors import UnsupportedModelError
from coda_models.layers.attention import RelativeBias
from coda_models.layers.layer import Block

FAMILIES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "distilbert": "distilbert",
    "mpnet": "mpnet",
    "roberta-prelayernorm": "roberta_prelayernorm",
}


@dataclass(frozen=True)
class Parts:
    """A pretrained encoder taken apart.

    Attributes:
        embeddings: module from ``input_names`` (without the mask) to [batch, tokens, width].
        blocks: the heavy layers, bottom first.
        head: module from hidden states to logits; ``None`` for feature extraction.
        input_names: what the tokenizer must give, in order.
        max_tokens: longest input that the position table allows.
    """

    embeddings: nn.Module
    blocks: list[Block]
    head: nn.Module | None
    input_names: tuple[str, ...]
    max_tokens: int
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


def input_names(config: Any) -> tuple[str, ...]:
    """What a family with token types takes; a table of one row tells none apart."""
    types = ("token_type_ids",) if config.type_vocab_size > 1 else ()
    return ("input_ids", "attention_mask", *types)


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
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model type {model.config.model_type!r} is not supported: use one of {', '.join(FAMILIES)}"
        )
    parts: Parts = import_module(f"coda_models.architectures.{family}").parts(model, task)
    return parts
