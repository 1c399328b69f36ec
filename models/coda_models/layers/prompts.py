"""Learned tokens before a sequence: prefixes that every layer attends to (Li and Liang 2021), and prompts among the
embeddings (Lester et al. 2021; P-tuning, Liu et al. 2021)."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from coda_models.errors import UnsupportedModelError
from coda_models.model import CodaModel
from coda_targets.signature import Signature

_OFFSET = "past_key_values_length"  # what transformers calls the number of tokens before the first


class _Shifted(nn.Module):
    """Embeddings whose positions begin behind a prefix."""

    def __init__(self, embeddings: nn.Module, tokens: int) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.tokens = tokens

    def forward(self, **inputs: Tensor) -> Tensor:
        """[batch, tokens] each -> [batch, tokens, width]."""
        embedded: Tensor = self.embeddings(**inputs, **{_OFFSET: self.tokens})
        return embedded


class _Prompted(nn.Module):
    """Embeddings of a prompt and, behind it, of a sequence of ids."""

    def __init__(self, embeddings: nn.Module, prompt: Tensor, signature: Signature) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.prompt: Tensor
        self.register_buffer("prompt", prompt)
        accepted = inspect.signature(embeddings.forward).parameters
        self._name = "inputs_embeds" if "inputs_embeds" in accepted else "input_embeds"
        self._ids = signature.lead.name

    def forward(self, **inputs: Tensor) -> Tensor:
        """[batch, tokens] each -> [batch, prompt + tokens, width]."""
        words = self.embeddings.word_embeddings(inputs.pop(self._ids))  # type: ignore[operator]  # every family has it
        beside = {name: nn.functional.pad(tensor, (len(self.prompt), 0)) for name, tensor in inputs.items()}
        given: dict[str, Any] = {self._name: torch.cat((self.prompt.expand(len(words), -1, -1), words), 1), **beside}
        if self._name == "input_embeds":
            given[self._ids] = None  # DistilBERT gives it no default
        embedded: Tensor = self.embeddings(**given)
        return embedded


def add_prefix(model: CodaModel, prefix: Tensor) -> None:
    """Let every layer attend to a prefix of its own, in place; the text's positions begin behind it.

    Args:
        model: without routers.
        prefix: [layers, 2, heads, tokens, head width], keys before values.

    Raises:
        UnsupportedModelError: a family whose positions cannot begin elsewhere, or a prefix of another shape.
    """
    if _OFFSET not in inspect.signature(model.embeddings.forward).parameters:
        raise UnsupportedModelError(f"{model.hf_config.model_type} has no place for a prefix: use a prompt or LoRA")
    heads, width = int(model.hf_config.num_attention_heads), int(model.hf_config.hidden_size)
    tokens = prefix.shape[-2]
    expected = (len(model.layers), 2, heads, tokens, width // heads)
    if tuple(prefix.shape) != expected:
        raise UnsupportedModelError(f"a prefix of shape {tuple(prefix.shape)} does not fit a model of {expected}")
    for layer, (key, value) in zip(model.coda_layers(), prefix, strict=True):
        layer.block.attention.set_prefix(key, value)
    model.embeddings = _Shifted(model.embeddings, tokens)
    model.signature = _behind(model.signature, tokens)


def add_prompt(model: CodaModel, prompt: Tensor) -> None:
    """Put a prompt in front of every text, in place; it stands for the text where the first token does.

    Args:
        model: without routers.
        prompt: [tokens, width].

    Raises:
        UnsupportedModelError: another task than sequence classification, whose answers have no place for the prompt's
            own tokens, or a prompt of another shape.
    """
    if model.coda_config.task != "sequence-classification":
        raise UnsupportedModelError(
            f"a prompt's own tokens would stand among the answers of {model.coda_config.task}: "
            "prompts are for sequence-classification"
        )
    width = int(model.hf_config.hidden_size)
    if prompt.dim() != 2 or prompt.shape[1] != width:
        raise UnsupportedModelError(f"a prompt of shape {tuple(prompt.shape)} does not fit a model of width {width}")
    model.embeddings = _Prompted(model.embeddings, prompt, model.signature)
    model.prompt_tokens = len(prompt)
    model.signature = _behind(model.signature, len(prompt))


def _behind(signature: Signature, taken: int) -> Signature:
    longest = signature.max_length
    if longest <= taken:
        raise UnsupportedModelError(f"{taken} learned tokens leave no room for a text in {longest} positions")
    return replace(signature, max_length=longest - taken)
