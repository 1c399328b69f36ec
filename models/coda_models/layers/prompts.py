"""Learned tokens before a sequence: prompts among the embeddings (Lester et al. 2021; P-tuning, Liu et al. 2021), and
embeddings whose positions begin behind a prefix (Li and Liang 2021)."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from coda_targets.signature import Signature

_OFFSET = "past_key_values_length"  # what transformers calls the number of tokens before the first


class Shifted(nn.Module):
    """Embeddings whose positions begin behind a prefix."""

    def __init__(self, embeddings: nn.Module, tokens: int) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.tokens = tokens

    @staticmethod
    def possible(embeddings: nn.Module) -> bool:
        """Whether positions of embeddings can begin elsewhere."""
        return _OFFSET in inspect.signature(embeddings.forward).parameters

    def forward(self, **inputs: Tensor) -> Tensor:
        """[batch, tokens] each -> [batch, tokens, width]."""
        embedded: Tensor = self.embeddings(**inputs, **{_OFFSET: self.tokens})
        return embedded


class Prompted(nn.Module):
    """Embeddings of a prompt, zeros at first, and, behind it, of a sequence of ids.

    Args:
        embeddings: of the backbone.
        tokens: of the prompt.
        width: of the embeddings.
        signature: what they take.
    """

    def __init__(self, embeddings: nn.Module, tokens: int, width: int, signature: Signature) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.prompt = nn.Parameter(torch.zeros(tokens, width))
        accepted = inspect.signature(embeddings.forward).parameters
        self._name = "inputs_embeds" if "inputs_embeds" in accepted else "input_embeds"
        self._ids = signature.lead.name

    @staticmethod
    def possible(embeddings: nn.Module) -> bool:
        """Whether embeddings take those of words instead of ids."""
        accepted = inspect.signature(embeddings.forward).parameters
        return hasattr(embeddings, "word_embeddings") and bool({"inputs_embeds", "input_embeds"} & set(accepted))

    def forward(self, **inputs: Tensor) -> Tensor:
        """[batch, tokens] each -> [batch, prompt + tokens, width]."""
        words = self.embeddings.word_embeddings(inputs.pop(self._ids))  # type: ignore[operator]  # every family has it
        beside = {name: nn.functional.pad(tensor, (len(self.prompt), 0)) for name, tensor in inputs.items()}
        given: dict[str, Any] = {self._name: torch.cat((self.prompt.expand(len(words), -1, -1), words), 1), **beside}
        if self._name == "input_embeds":
            given[self._ids] = None  # DistilBERT gives it no default
        embedded: Tensor = self.embeddings(**given)
        return embedded
