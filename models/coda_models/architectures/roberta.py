"""RoBERTa and XLM-RoBERTa (Liu et al. 2019): BERT's layer, positions counted from the padding id."""

from typing import Any

from coda_models.architectures import Parts, after_padding, choose_head, text_inputs
from coda_models.architectures.bert import block, refuse_variants
from coda_targets.signature import Signature


def signature(config: Any) -> Signature:
    """Ids, mask and, of a few, token types; positions begin behind that of padding."""
    return text_inputs(config, after_padding(config))


def parts(model: Any, task: str) -> Parts:
    """Take a RoBERTa model apart."""
    refuse_variants(model.config)
    base = model.base_model
    return Parts(
        embeddings=base.embeddings,
        blocks=[block(layer, model.config) for layer in base.encoder.layer],
        head=choose_head(model, task, lambda: model.classifier),
        signature=signature(model.config),
    )
