"""What the ``adapters`` library keeps inside of a model: described as a checkpoint describes it, and copied into the
modules of that description."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coda_models.layers.bottleneck import Bottleneck, copy_scaled
from coda_models.layers.invertible import Transformed
from coda_models.layers.layer import Block
from coda_models.learned_parts import BottleneckForm, InvertibleForm, LayerParts
from coda_models.model import CodaModel

_PLACES = {"mh_adapter": "after_attention", "output_adapter": "after_feed_forward"}


def layer_parts(base: Any, theirs: nn.Module, names: Sequence[str]) -> LayerParts:
    """What one layer has of the named adapters; one that was left out has none.

    Args:
        base: the library's base model.
        theirs: its layer.
    """
    forms = {place: [_form(module, name) for name in some] for place, module, some in _bottlenecks(theirs, names)}
    return LayerParts(prefix=sum(key.shape[1] for key, _ in _prefixes(base, theirs, names)), **forms)


@torch.no_grad()
def fill_layer(base: Any, theirs: nn.Module, block: Block, names: Sequence[str]) -> None:
    """Copy what the named adapters have learned in one layer.

    Args:
        base, theirs: as for ``layer_parts``.
        block: built of what that has given.
    """
    for place, module, some in _bottlenecks(theirs, names):
        for own, name in zip(getattr(block, place).each(), some, strict=True):
            _fill(own, module.adapters[name])
    if found := list(_prefixes(base, theirs, names)):
        block.attention.fill_prefix(*(torch.cat(kind, 1) for kind in zip(*found, strict=True)))


def invertible_form(base: Any, names: Sequence[str]) -> InvertibleForm | None:
    """The invertible adapter of the first of some adapters; the library, too, looks at no other."""
    theirs = _invertible(base, names)
    if theirs is None:
        return None
    from adapters.configuration import BnConfig

    config = base.adapters_config.match(names[0], BnConfig, location_key="inv_adapter")
    first, second = (network[0].out_features for network in (theirs.F, theirs.G))
    return InvertibleForm(first=first, second=second, activation=config["non_linearity"].lower())


@torch.no_grad()
def fill_invertible(model: CodaModel, base: Any, names: Sequence[str]) -> None:
    """Copy what the invertible adapter of ``invertible_form`` has learned, where there is one."""
    theirs = _invertible(base, names)
    if theirs is None:
        return
    assert isinstance(model.embeddings, Transformed)
    own = model.embeddings.invertible
    for network, other in ((own.first, theirs.F), (own.second, theirs.G)):
        down, activation, up = network
        down.load_state_dict(other[0].state_dict())
        _copy_activation(activation, other[1])
        up.load_state_dict(other[2].state_dict())


def _invertible(base: Any, names: Sequence[str]) -> Any:
    return dict(getattr(base, "invertible_adapters", {})).get(names[0])


def _bottlenecks(theirs: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, Any, list[str]]]:
    """Where a layer has adapters, what of the library's holds them, and which they are."""
    from adapters.methods.bottleneck import BottleneckLayer

    for module in theirs.modules():
        if isinstance(module, BottleneckLayer) and module.location_key in _PLACES:
            some = [name for name in names if name in module.adapters]
            if some:
                yield _PLACES[module.location_key], module, some


def _form(module: Any, name: str) -> BottleneckForm:
    from adapters.configuration import BnConfig
    from adapters.methods.modeling import ParallelAdapter

    theirs = module.adapters[name]
    config = module.adapters_config.match(name, BnConfig, module.layer_idx, module.location_key)
    return BottleneckForm(
        width=theirs.adapter_up.in_features,
        activation=config["non_linearity"].lower(),
        parallel=isinstance(theirs, ParallelAdapter),
        joined=bool(theirs.original_ln_before),
        closes=bool(theirs.original_ln_after),
        residual=_residual(theirs.residual_before_ln),
        residual_first=bool(theirs.adapter_residual_before_ln),
        norm_before=bool(theirs.add_layer_norm_before),
        norm_after=bool(theirs.add_layer_norm_after),
    )


def _residual(setting: object) -> str:
    """Which residual a bottleneck gets; the library cannot run with a true setting that is neither of these."""
    return "before" if setting is True else "added" if setting == "post_add" else "normed"


def _fill(own: Bottleneck, theirs: Any) -> None:
    """Copy an adapter, its scale folded into its weights."""
    down = next(module for module in theirs.adapter_down if isinstance(module, nn.Linear))
    own.down.load_state_dict(down.state_dict())
    _copy_activation(own.activation, theirs.non_linearity)
    copy_scaled(theirs.adapter_up, own.up, theirs.scaling)
    for norm, name in ((own.norm_before, "adapter_norm_before"), (own.norm_after, "adapter_norm_after")):
        if norm is not None:
            norm.load_state_dict(getattr(theirs, name).state_dict())


def _copy_activation(own: nn.Module, theirs: Any) -> None:
    if isinstance(theirs.f, nn.Module):
        own.load_state_dict(theirs.f.state_dict())


def _prefixes(base: Any, theirs: Any, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values that a layer's prefixes come to, [heads, prefix, head width] each; no network makes them now."""
    from adapters.methods.prefix_tuning import PrefixTuningLayer

    for module in theirs.modules():
        for name in names if isinstance(module, PrefixTuningLayer) else ():
            if name in module.prefixes:
                with torch.no_grad():
                    by_place = base.prefix_tuning.prefix_tunings[name](1)
                key, value = by_place[module.location_key][module.prefixes[name]].squeeze(1)
                yield key, value
