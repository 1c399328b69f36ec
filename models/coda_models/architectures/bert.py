"""BERT (Devlin et al. 2019) and the families that share its layer: post-norm, absolute positions."""

from typing import Any

from torch import nn

from coda_models.architectures import Parts, choose_head, text_inputs
from coda_models.errors import UnsupportedModelError
from coda_models.layers.attention import Attention
from coda_models.layers.feed_forward import PlainFeedForward
from coda_models.layers.layer import PostNormBlock
from coda_targets.signature import Signature


def block(layer: Any, config: Any) -> PostNormBlock:
    """One BERT-shaped layer."""
    attention = layer.attention
    return PostNormBlock(
        Attention(
            attention.self.query,
            attention.self.key,
            attention.self.value,
            attention.output.dense,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
        ),
        PlainFeedForward(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense),
        attention.output.LayerNorm,
        layer.output.LayerNorm,
        config.hidden_dropout_prob,
    )


def refuse_variants(config: Any) -> None:
    """Refuse the settings that change what a layer computes.

    Raises:
        UnsupportedModelError: a decoder, or positions that are not absolute.
    """
    if getattr(config, "is_decoder", False):
        raise UnsupportedModelError(
            f"this {config.model_type} model is a decoder: routing is not causal, compile an encoder"
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise UnsupportedModelError(
            f"position_embedding_type {positions!r} of {config.model_type} is not supported: only 'absolute' is"
        )


def signature(config: Any) -> Signature:
    """Ids, mask and token types, as many as there are positions."""
    return text_inputs(config, config.max_position_embeddings)


def parts(model: Any, task: str) -> Parts:
    """Take a BERT model apart."""
    refuse_variants(model.config)
    base = model.base_model
    return Parts(
        embeddings=base.embeddings,
        blocks=[block(layer, model.config) for layer in base.encoder.layer],
        head=choose_head(model, task, lambda: nn.Sequential(model.bert.pooler, model.dropout, model.classifier)),
        signature=signature(model.config),
    )
