"""DistilBERT (Sanh et al. 2019): BERT's layer under other names, no token types, no pooler."""

from typing import Any

from torch import nn

from coda_models.architectures import FirstToken, Parts, choose_head, text_inputs
from coda_models.layers.attention import Attention
from coda_models.layers.feed_forward import PlainFeedForward
from coda_models.layers.layer import PostNormBlock
from coda_targets.signature import Signature


def _block(layer: Any, config: Any) -> PostNormBlock:
    attention = layer.attention
    return PostNormBlock(
        Attention(
            attention.q_lin,
            attention.k_lin,
            attention.v_lin,
            attention.out_lin,
            config.n_heads,
            config.attention_dropout,
        ),
        PlainFeedForward(layer.ffn.lin1, layer.ffn.activation, layer.ffn.lin2),
        layer.sa_layer_norm,
        layer.output_layer_norm,
        config.dropout,
    )


def signature(config: Any) -> Signature:
    """Ids and mask, as many as there are positions."""
    return text_inputs(config, config.max_position_embeddings)


def parts(model: Any, task: str) -> Parts:
    """Take a DistilBERT model apart."""
    base = model.base_model
    return Parts(
        embeddings=base.embeddings,
        blocks=[_block(layer, model.config) for layer in base.transformer.layer],
        head=choose_head(
            model,
            task,
            lambda: nn.Sequential(FirstToken(), model.pre_classifier, nn.ReLU(), model.dropout, model.classifier),
        ),
        signature=signature(model.config),
    )
