"""ELECTRA (Clark et al. 2020): BERT's layers behind embeddings that may have a width of their own; no pooler."""

from typing import Any

from torch import Tensor, nn

from coda_models.architectures import Parts, choose_head
from coda_models.architectures.bert import block, refuse_variants, signature


class _Projected(nn.Module):
    """Embeddings brought to the layers' width."""

    def __init__(self, embeddings: nn.Module, project: nn.Linear) -> None:
        super().__init__()
        self.embeddings, self.project = embeddings, project

    def forward(self, past_key_values_length: int = 0, **inputs: Tensor) -> Tensor:
        """[batch, tokens] each -> [batch, tokens, width]; positions may begin behind a prefix."""
        states: Tensor = self.project(self.embeddings(**inputs, past_key_values_length=past_key_values_length))
        return states


def parts(model: Any, task: str) -> Parts:
    """Take an ELECTRA model apart."""
    refuse_variants(model.config)
    base = model.base_model
    project = getattr(base, "embeddings_project", None)  # there where the widths differ
    return Parts(
        embeddings=base.embeddings if project is None else _Projected(base.embeddings, project),
        blocks=[block(layer, model.config) for layer in base.encoder.layer],
        head=choose_head(model, task, lambda: model.classifier),
        signature=signature(model.config),
    )
