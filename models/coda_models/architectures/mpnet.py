"""MPNet (Song et al. 2020): BERT's layer with a relative position bias shared by all layers."""

from typing import Any

from coda_models.architectures import Parts, choose_head, text_inputs
from coda_models.layers.attention import Attention, RelativeBias
from coda_models.layers.feed_forward import PlainFeedForward
from coda_models.layers.layer import PostNormBlock
from coda_targets.signature import Signature

_PADDING = 1  # MPNetEmbeddings.padding_idx


def _block(layer: Any, config: Any) -> PostNormBlock:
    attention = layer.attention
    return PostNormBlock(
        Attention(
            attention.attn.q,
            attention.attn.k,
            attention.attn.v,
            attention.attn.o,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
        ),
        PlainFeedForward(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense),
        attention.LayerNorm,
        layer.output.LayerNorm,
        config.hidden_dropout_prob,
    )


def signature(config: Any) -> Signature:
    """Ids and mask; positions begin behind MPNet's own padding id, whatever the configuration calls padding."""
    return text_inputs(config, config.max_position_embeddings - _PADDING - 1)


def parts(model: Any, task: str) -> Parts:
    """Take an MPNet model apart."""
    base = model.base_model
    encoder = base.encoder
    return Parts(
        embeddings=base.embeddings,
        blocks=[_block(layer, model.config) for layer in encoder.layer],
        head=choose_head(model, task, lambda: model.classifier),
        relative_bias=RelativeBias(
            encoder.relative_attention_bias,
            # 32 of them whatever relative_attention_num_buckets says, which sizes the table alone.
            type(encoder).relative_position_bucket,
        ),
        signature=signature(model.config),
    )
