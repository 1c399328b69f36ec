"""RoBERTa and XLM-RoBERTa (Liu et al. 2019): BERT's layer, positions counted from the padding id."""

from typing import Any

from coda_models.architectures import Parts, after_padding, choose_head, input_names
from coda_models.architectures.bert import block, refuse_variants


def parts(model: Any, task: str) -> Parts:
    """Take a RoBERTa model apart."""
    refuse_variants(model.config)
    base = model.base_model
    return Parts(
        embeddings=base.embeddings,
        blocks=[block(layer, model.config) for layer in base.encoder.layer],
        head=choose_head(model, task, lambda: model.classifier),
        input_names=input_names(model.config),
        max_tokens=after_padding(model.config),
    )
