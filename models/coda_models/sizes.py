"""How many numbers a configuration describes, held against the bytes of its weights before a model of it is made."""

from pathlib import Path
from typing import Any

from coda_models import architectures
from coda_models.architectures import FAMILIES
from coda_models.config import CodaConfig
from coda_models.errors import BackboneError, CheckpointError
from coda_ops.errors import shown

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_INNER = ("intermediate_size", "hidden_dim")  # the second is DistilBERT's
_EMBEDDED = "embedding_size"  # ELECTRA's, of the tables
_ROTARY = ("global_rope_theta", "rope_theta", "rope_parameters")  # of families whose positions are no table
_MOST_LABELS = 1 << 20  # transformers names each as soon as it is told how many there are
_LEAST_OF_LAYER = 500  # bytes that names, types and shapes of a layer's tensors take, however small these are


def check_labels(plain: dict[str, Any], source: object) -> None:
    """Refuse a configuration, as plain values, of more labels than anybody names.

    Raises:
        BackboneError: says how many.
    """
    number = plain.get("num_labels", 2)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _MOST_LABELS:
        raise BackboneError(f"the configuration in {source} has num_labels {shown(number)}: put how many there are")


def check_backbone(config: Any, held: int, source: object) -> None:
    """Refuse a configuration of an encoder that is larger than its weights, but for families of other packages.

    Args:
        config: transformers' own.
        held: bytes of the weights, in which each number takes one or more.
        source: whose they are, for messages.

    Raises:
        BackboneError: names a size that is none, or says how many numbers there would be.
    """
    if not FAMILIES.get(config.model_type, "").startswith(architectures.__name__):
        return
    inner = next((name for name in _INNER if hasattr(config, name)), _INNER[0])
    embedded = _EMBEDDED if hasattr(config, _EMBEDDED) else "hidden_size"
    for name in (*_SIZES, inner, embedded):
        value = getattr(config, name, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BackboneError(
                f"the configuration in {source} has {name} {shown(value)}: it should be a whole number from 1 on"
            )
    width, layers = config.hidden_size, config.num_hidden_layers
    rotary = any(hasattr(config, name) for name in _ROTARY)
    rows = config.vocab_size + (0 if rotary else config.max_position_embeddings)
    layer = 4 * width**2 + 2 * width * getattr(config, inner)
    if rows * getattr(config, embedded) + layers * (layer + _LEAST_OF_LAYER) > held:
        raise BackboneError(
            f"the model in {source} cannot be read: its configuration describes a larger one than its "
            f"{held / 1e6:.1f} MB of weights hold, of {shown(layers)} layers of width {shown(width)} and vocab_size "
            f"{shown(config.vocab_size)}: they are cut off, or it is another model's"
        )


def check_learned(config: CodaConfig, hf_config: Any, held: int, path: Path) -> None:
    """Refuse a configuration of routers, adapters and parts that are larger than the file that holds them.

    Args:
        hf_config: of the encoder, as ``check_backbone`` has seen.
        held: bytes of the file.

    Raises:
        CheckpointError: says so.
    """
    width, layers = hf_config.hidden_size, getattr(hf_config, "num_hidden_layers", 1)  # or more
    routed = layers if config.routed_layers is None else len(config.routed_layers)
    parts = config.parts
    across = 2 * layers * config.bottleneck + routed * (2 * config.stand_in + 3 * config.key_value_rank)
    across += parts.prompt + sum(2 * (one.width + one.prefix) for one in parts.layers)
    if parts.invertible is not None:
        across += parts.invertible.first + parts.invertible.second
    modules = sum(one.inputs * one.outputs for one in config.modules if one.kind == "Dense")
    if width * across + modules > held:
        raise CheckpointError(
            f"{path} does not fit its own configuration, which describes more than its {held / 1e6:.1f} MB hold"
        )
