"""Multiply-adds of a model in memory."""

from coda_models.config import Reduction, parse_reduction
from coda_models.model import CodaModel
from coda_ops.cost import multiply_adds


def layer_multiply_adds(model: CodaModel, tokens: int, reduction: Reduction | None = None) -> list[int]:
    """Of each layer, bottom first, for one sequence of valid tokens.

    Args:
        tokens: learned ones in front of a text not counted.
        reduction: r of the layers that have a router, instead of each one's own; 1 is the dense model.
    """
    config, asked = model.coda_config, None if reduction is None else parse_reduction(reduction)
    return [
        multiply_adds(
            tokens + model.prompt_tokens,
            layer.reduction if asked is None or layer.router is None else asked,
            attention=layer.attention,
            width=int(model.hf_config.hidden_size),
            feed_forward=layer.block.feed_forward.inner,
            bottleneck=layer.block.light_width + (0 if layer.adapter is None else config.bottleneck),
            stand_in=config.stand_in,
            key_value_rank=config.key_value_rank,
            prefix=layer.block.attention.prefix,
        )
        for layer in model.coda_layers()
    ]
