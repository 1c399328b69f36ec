"""From a Hugging Face encoder to a CoDA model."""

from dataclasses import replace

from transformers import PreTrainedModel

from coda_models.architectures import take_apart
from coda_models.config import CodaConfig
from coda_models.digest import tensor_digest
from coda_models.errors import BackboneError, UnsupportedModelError
from coda_models.layers.adapter import Adapter
from coda_models.layers.layer import CodaLayer
from coda_models.layers.router import Router
from coda_models.model import CodaModel
from coda_ops.route import Schedule


def convert(model: PreTrainedModel, config: CodaConfig) -> CodaModel:
    """Put a router and an adapter beside every layer of a pretrained encoder.

    The model's own modules are reused, not copied. Adapters start at zero and routers at random, so that at r = 1
    the result computes what the model did.

    Args:
        model: a Hugging Face encoder whose head fits ``config.task``.
        config: a ``backbone_sha256`` in it is checked against the model; an empty one is filled in.

    Raises:
        UnsupportedModelError: the architecture has no routed form, or the model no layers.
        ConfigError: the configuration speaks of layers that the model does not have.
        BackboneError: the model is another one than ``config.backbone_sha256`` says.
    """
    parts = take_apart(model, config.task)
    if not parts.blocks:
        raise UnsupportedModelError(f"this {model.config.model_type} model has no layers, so there is nothing to route")
    reductions = config.layer_reductions(len(parts.blocks))
    schedule = Schedule(config.iterations, config.epsilon_start, config.epsilon_decay, config.epsilon_final)
    routed = range(len(reductions)) if config.routed_layers is None else config.routed_layers
    width = int(model.config.hidden_size)
    layers = [
        CodaLayer(
            block,
            Adapter(width, config.bottleneck) if config.bottleneck else None,
            Router(width) if config.bottleneck and i in routed else None,
            reductions[i],
            config.attention,
            schedule,
        )
        for i, block in enumerate(parts.blocks)
    ]
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
        raise BackboneError(
            f"the backbone {config.backbone or 'given'!r} has SHA-256 {digest[:12]}… but the checkpoint was trained on "
            f"{config.backbone_sha256[:12]}…: pass the original one with --backbone PATH"
        )
    converted.coda_config = replace(config, backbone_sha256=digest)
    converted.freeze_backbone()
    return converted.eval()


def backbone_digest(model: CodaModel) -> str:
    """SHA-256 of the encoder's own tensors: embeddings, blocks, final norm and position bias, no head."""
    own = ("embeddings.", "relative_bias.", "final_norm.")
    return tensor_digest(
        {name: tensor for name, tensor in model.state_dict().items() if name.startswith(own) or ".block." in name}
    )
