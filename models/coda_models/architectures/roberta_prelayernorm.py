"""RoBERTa-PreLayerNorm (fairseq's ``--encoder-normalize-before``): the pre-norm form of a text encoder."""

from typing import Any

from coda_models.architectures import Parts, after_padding, choose_head, text_inputs
from coda_models.architectures.bert import refuse_variants
from coda_models.layers.attention import Attention
from coda_models.layers.feed_forward import PlainFeedForward
from coda_models.layers.layer import PreNormBlock
from coda_targets.signature import Signature


def _block(layer: Any, config: Any) -> PreNormBlock:
    attention = layer.attention
    return PreNormBlock(
        Attention(
            attention.self.query,
            attention.self.key,
            attention.self.value,
            attention.output.dense,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
        ),
        PlainFeedForward(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense),
        attention.LayerNorm,
        layer.intermediate.LayerNorm,
        config.hidden_dropout_prob,
    )


def signature(config: Any) -> Signature:
    """Ids, mask and, of a few, token types; positions begin behind that of padding."""
    return text_inputs(config, after_padding(config))


def parts(model: Any, task: str) -> Parts:
    """Take a RoBERTa-PreLayerNorm model apart."""
    refuse_variants(model.config)
    base = model.base_model
    return Parts(
        embeddings=base.embeddings,
        blocks=[_block(layer, model.config) for layer in base.encoder.layer],
        head=choose_head(model, task, lambda: model.classifier),
        final_norm=base.LayerNorm,
        signature=signature(model.config),
    )
