"""From a Hugging Face encoder to a CoDA model."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from coda_models.architectures import pooling_of, take_apart
from coda_models.build_parts import add_parts
from coda_models.config import CodaConfig, Reduction
from coda_models.digest import tensor_digest
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_models.layers.adapter import Adapter
from coda_models.layers.layer import CodaLayer
from coda_models.layers.low_rank import LowRank
from coda_models.layers.router import Router
from coda_models.model import CodaModel
from coda_ops.errors import OptionError
from coda_ops.route import Schedule


def convert(model: PreTrainedModel, config: CodaConfig) -> CodaModel:
    """Put a router and an adapter beside every layer of a pretrained encoder, and ``config.parts`` in their places.

    The model's own modules are reused, not copied. Adapters start at zero and routers at random, so that at r = 1
    the result computes what the model did; so do bottlenecks inside of layers. Prompts and prefixes are zeros.

    Args:
        model: a Hugging Face encoder for ``config.backbone_task``.
        config: a ``backbone_sha256`` in it is checked against the model; an empty one is filled in.

    Raises:
        UnsupportedModelError: the architecture has no routed form or no place for a part, or the model no layers.
        ConfigError: the configuration speaks of layers that the model does not have, or of a first token where the
            model's head reads the mean.
        OptionError: the model is another one than ``config.backbone_sha256`` says.
    """
    parts = take_apart(model, config.backbone_task)
    if config.backbone_task == "sequence-classification" and config.pooling == "first" != pooling_of(model.config):
        raise ConfigError(
            f"the head of this {model.config.model_type} model reads the mean of a sequence and no first token: use "
            "CodaConfig(pooling='mean')"
        )
    if not parts.blocks:
        raise UnsupportedModelError(f"this {model.config.model_type} model has no layers, so there is nothing to route")
    reductions = config.layer_reductions(len(parts.blocks))
    schedule = Schedule(config.iterations, config.epsilon_start, config.epsilon_decay, config.epsilon_final)
    routed = range(len(reductions)) if config.routed_layers is None else config.routed_layers
    width = int(model.config.hidden_size)
    layers = []
    for i, block in enumerate(parts.blocks):
        adapter = Adapter(width, config.bottleneck) if config.bottleneck else None
        router = Router(width) if config.routes and i in routed else None
        stand_in, key_value = _low_rank(config, width, block.attention.inner, i in routed)
        layers.append(
            CodaLayer(
                block,
                adapter,
                router,
                reductions[i],
                config.attention,
                schedule,
                stand_in=stand_in,
                key_value=key_value,
            )
        )
    converted = CodaModel(
        config,
        model.config,
        parts.embeddings,
        layers,
        parts.head,
        parts.relative_bias,
        parts.final_norm,
        parts.signature,
    )
    digest = backbone_digest(converted)
    if config.backbone_sha256 not in ("", digest):
        raise OptionError(
            "the backbone given has SHA-256 {found}… but the checkpoint was trained on {name!r}, {wanted}…: pass that "
            "one as {backbone}",
            name=config.backbone or "another",
            found=digest[:12],
            wanted=config.backbone_sha256[:12],
        )
    converted.coda_config = replace(config, backbone_sha256=digest)
    add_parts(converted, config.parts, getattr(model.base_model, "pooler", None))
    converted.freeze_backbone()
    return converted.eval()


def add_stand_ins(
    model: CodaModel,
    *,
    reduction: Reduction | Sequence[Reduction],
    stand_in: int,
    attention: str = "k_to_k",
    key_value_rank: int = 0,
    routed_layers: Sequence[int] | None = None,
) -> None:
    """Give a dense model new routers, and stand-ins that are still zero, in place; at r = 1 it computes what it did.

    Args:
        model: whose layers are what is routed, with the adapters inside and beside them.
        reduction, stand_in, attention, key_value_rank, routed_layers: as in ``CodaConfig``.

    Raises:
        ConfigError: they contradict each other, or name layers that the model does not have.
    """
    config = replace(
        model.coda_config,
        reduction=reduction,
        stand_in=stand_in,
        attention=attention,
        key_value_rank=key_value_rank,
        routed_layers=routed_layers,
    )
    width = int(model.hf_config.hidden_size)
    for i, (layer, r) in enumerate(zip(model.coda_layers(), config.layer_reductions(len(model.layers)), strict=True)):
        routed = config.routed_layers is None or i in config.routed_layers
        like = layer.block.attention.query.weight  # what is added is of its type, on its device
        layer.router = Router(width).to(like) if routed and config.routes else None
        layer.stand_in, layer.key_value = (
            one and one.to(like) for one in _low_rank(config, width, layer.block.attention.inner, routed)
        )
        layer.reduction, layer.attention = r, attention
    model.coda_config = config
    model.freeze_backbone()


def _low_rank(config: CodaConfig, width: int, inner: int, routed: bool) -> tuple[LowRank | None, LowRank | None]:
    """A layer's stand-in, and what stands for its keys and values, as wide as attention is inside."""
    return (
        LowRank(width, config.stand_in, width) if routed and config.stand_in else None,
        LowRank(width, config.key_value_rank, 2 * inner) if routed and config.key_value_rank else None,
    )


def backbone_digest(model: CodaModel) -> str:
    """SHA-256 of the tensors of an encoder without parts: embeddings, blocks, final norm and position bias, no head."""
    own = ("embeddings.", "relative_bias.", "final_norm.")
    return tensor_digest(
        {name: tensor for name, tensor in model.state_dict().items() if name.startswith(own) or ".block." in name}
    )
