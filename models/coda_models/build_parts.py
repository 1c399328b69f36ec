"""The modules of learned parts, made of their description: before a checkpoint fills them, and before a folder of
another library does."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from coda_models.architectures import FirstToken
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_models.layers.bottleneck import Bottleneck, Bottlenecks, activation_of
from coda_models.layers.embeddings import MaskedEmbeddings
from coda_models.layers.invertible import Invertible, Transformed
from coda_models.layers.layer import CodaLayer, PostNormBlock
from coda_models.layers.prompts import Prompted, Shifted
from coda_models.learned_parts import BottleneckForm, HeadForm, LayerParts, LearnedParts
from coda_models.model import CodaModel
from coda_targets.signature import Signature


def add_parts(model: CodaModel, parts: LearnedParts, pooler: nn.Module | None) -> None:
    """Give a model that has none the parts of a description, untrained, in place.

    Args:
        pooler: the backbone's own, where it has one.

    Raises:
        ConfigError: parts of another number of layers.
        UnsupportedModelError: this family, or this task, has no place for them.
    """
    family, width = str(model.hf_config.model_type), int(model.hf_config.hidden_size)
    if parts.layers and len(parts.layers) != len(model.layers):
        raise ConfigError(f"parts describe {len(parts.layers)} layers but the model has {len(model.layers)}")
    if parts.offset and not Shifted.possible(model.embeddings):
        raise UnsupportedModelError(f"{family} has no place for a prefix: use a prompt or LoRA")
    if parts.prompt and model.coda_config.task != "sequence-classification":
        raise UnsupportedModelError(
            f"a prompt's own tokens would stand among the answers of {model.coda_config.task}: "
            "prompts are for sequence-classification"
        )
    if parts.prompt and not Prompted.possible(model.embeddings):
        raise UnsupportedModelError(f"this {family} model has no place for a prompt among its embeddings: use LoRA")
    if parts.invertible is not None and isinstance(model.embeddings, MaskedEmbeddings):
        raise UnsupportedModelError(f"{family} has no place for an invertible adapter among its embeddings: use LoRA")
    signature = _behind(model.signature, parts.prompt + parts.offset)
    if parts.offset:
        model.embeddings = Shifted(model.embeddings, parts.offset)
    if parts.prompt:
        model.embeddings = Prompted(model.embeddings, parts.prompt, width, model.signature)
        model.prompt_tokens = parts.prompt
    if parts.invertible is not None:
        model.embeddings = Transformed(model.embeddings, Invertible(width, parts.invertible))
    for layer, own in zip(model.coda_layers(), parts.layers or [LayerParts()] * len(model.layers), strict=True):
        _add_to(layer, own, width, family)
    if parts.head is not None:
        model.head = _head(parts.head, width, int(model.hf_config.num_labels), model.coda_config.task, pooler, family)
    model.signature = signature if parts.token_types else signature.without("types")


def _behind(signature: Signature, taken: int) -> Signature:
    longest = signature.max_length
    if longest <= taken:
        raise UnsupportedModelError(f"{taken} learned tokens leave no room for a text in {longest} positions")
    return replace(signature, max_length=longest - taken)


def _add_to(layer: CodaLayer, parts: LayerParts, width: int, family: str) -> None:
    block = layer.block
    if parts.prefix:
        block.attention.add_prefix(parts.prefix)
    if not parts.width:
        return
    if not isinstance(block, PostNormBlock):
        raise UnsupportedModelError(f"{family} has no place for bottlenecks inside of its layers: use LoRA")
    block.after_attention = _bottlenecks(parts.after_attention, width)
    block.after_feed_forward = _bottlenecks(parts.after_feed_forward, width)


def _bottlenecks(forms: Sequence[BottleneckForm], width: int) -> Bottlenecks | None:
    return Bottlenecks([Bottleneck(width, form) for form in forms]) if forms else None


def _head(form: HeadForm, width: int, labels: int, task: str, pooler: nn.Module | None, family: str) -> nn.Sequential:
    made: list[nn.Module] = []
    if form.pooler:
        if pooler is None:
            raise UnsupportedModelError(f"{family} has no pooler for a head to read: use one of the first token")
        made.append(pooler)
    elif task == "sequence-classification":
        made.append(FirstToken())
    for last in [False] * (form.layers - 1) + [True]:
        made += [nn.Dropout(form.dropout), nn.Linear(width, labels if last else width, bias=form.bias or not last)]
        if not last:
            made.append(activation_of(form.activation))
    return nn.Sequential(*made)


@torch.no_grad()
def fill_prompt(model: CodaModel, prompt: Tensor) -> None:
    """Give a model's prompt its values.

    Args:
        prompt: [tokens, width].

    Raises:
        UnsupportedModelError: the model has no prompt of this shape.
    """
    expected = (model.prompt_tokens, int(model.hf_config.hidden_size))
    if tuple(prompt.shape) != expected:
        raise UnsupportedModelError(f"a prompt of shape {tuple(prompt.shape)} does not fit a model of {expected}")
    for module in model.embeddings.modules():
        if isinstance(module, Prompted):
            module.prompt.copy_(prompt)


def fill_prefix(model: CodaModel, prefix: Tensor) -> None:
    """Give every layer's prefix its values.

    Args:
        prefix: [layers, 2, heads, tokens, head width], keys before values.

    Raises:
        UnsupportedModelError: the model has no prefixes of this shape.
    """
    layers = [layer.block.attention for layer in model.coda_layers()]
    first = layers[0]
    expected = (len(layers), 2, first.heads, first.prefix, first.key.out_features // first.heads)
    if tuple(prefix.shape) != expected or any(one.prefix != first.prefix for one in layers):
        raise UnsupportedModelError(f"a prefix of shape {tuple(prefix.shape)} does not fit a model of {expected}")
    for attention, (key, value) in zip(layers, prefix, strict=True):
        attention.fill_prefix(key, value)
