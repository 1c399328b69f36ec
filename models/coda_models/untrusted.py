"""Checks of untrusted folders: no configuration may make transformers fetch code, read outside the folder, or use a
class that is not its own."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path, PureWindowsPath
from typing import Any

from safetensors import safe_open
from transformers import PretrainedConfig

from coda_models.architectures import FAMILIES
from coda_models.errors import BackboneError, UnsupportedModelError
from coda_ops.errors import shown
from coda_ops.foreign_json import json_object

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_TOKENIZER = "tokenizer.json"
# transformers writes it and reads the file of that name in the folder alone.
_UNREAD = "special_tokens_map_file"

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

ReadJson = Callable[[str], dict[str, Any] | None]
"""What a file of the folder holds, by its name; ``None`` where there is none."""


def settled(config: PretrainedConfig, source: object) -> PretrainedConfig:
    """A copy of a configuration that asks for nothing but a standard class's own modules.

    How attention is computed is this compiler's affair, so whatever the configuration names for it, which may be code
    on the hub, is forgotten; so is in how many pieces a layer runs, and what else it should give.

    Args:
        source: whose configuration it is, for messages.

    Raises:
        UnsupportedModelError: another architecture, code of its own, quantised weights or pruned heads.
        BackboneError: weights in a file outside of the folder, or a value of another type than it should have.
    """
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} is not supported: use one of {', '.join(FAMILIES)}"
        )
    _check_types(config, source)
    if own := getattr(config, "auto_map", None):
        raise UnsupportedModelError(
            f"the configuration in {source} names code of its own, {shown(own)}, which is not run: "
            "only transformers' own classes are supported"
        )
    if getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            f"the model {source} is quantised: pass the one in float32, of an adapter as its backbone"
        )
    if config.pruned_heads:
        raise UnsupportedModelError(
            f"the configuration in {source} has pruned_heads, so its layers differ in width: use the model as it was "
            "before prune_heads"
        )
    if config.add_cross_attention:
        raise UnsupportedModelError(f"the configuration in {source} has add_cross_attention: use an encoder by itself")
    weights = getattr(config, "transformers_weights", None)
    if weights is not None and not _plain(weights):
        raise BackboneError(f"the configuration in {source} names weights outside of its folder: {shown(weights)}")
    config = deepcopy(config)
    config._attn_implementation = None
    config.chunk_size_feed_forward, config.output_attentions = 0, False
    return config


def _check_types(config: PretrainedConfig, source: object) -> None:
    """Refuse a value that is of another type than its default."""
    for name, usual in vars(type(config)()).items():
        value, kind = getattr(config, name, None), type(usual)
        whole = kind is float and type(value) is int
        if kind in _KINDS and value is not None and type(value) is not kind and not whole:
            raise BackboneError(
                f"the configuration in {source} has {name} {shown(value)}, which should be {_KINDS[kind]}: put the "
                "model's own there"
            )


def check_shards(read: ReadJson, source: object) -> None:
    """Refuse an index whose weights lie outside of the folder.

    Raises:
        BackboneError: names the first such file.
    """
    for name in INDICES:
        listed = (read(name) or {}).get("weight_map")
        for shard in listed.values() if isinstance(listed, dict) else ():
            if not _plain(shard):
                raise BackboneError(f"{name} in {source} names weights outside of its folder: {shown(shard)}")


def check_listed(index: Path) -> None:
    """Refuse weights that hold a tensor which their index does not list, since transformers leaves it out.

    Args:
        index: of safetensors files that lie beside it, as ``check_shards`` has seen.

    Raises:
        BackboneError: names the first such tensor.
    """
    listed: dict[str, str] = (json_object(index) or {}).get("weight_map", {})
    for shard in sorted(set(listed.values())):
        with safe_open(index.parent / shard, "pt") as file:
            if unlisted := sorted(set(file.keys()) - set(listed)):
                raise BackboneError(
                    f"{index.parent / shard} holds {unlisted[0]!r}, which {index.name} does not list, so it would be "
                    "left out: save the model again"
                )


def check_tokenizer(read: ReadJson, source: object) -> None:
    """Refuse settings that name files to read or code to run: a tokenizer's files are found by their own names.

    Raises:
        BackboneError: names the first such setting.
    """
    for name in TOKENIZER_SETTINGS:
        for key, value in _settings(read(name) or {}):
            if key == "auto_map" and value:
                raise BackboneError(
                    f"{name} in {source} names code of its own, {shown(value)}, which is not run: save one of "
                    "transformers' own tokenizers there"
                )
            if _names_files(key, value) and (key != "tokenizer_file" or read(_TOKENIZER) is not None):
                raise BackboneError(
                    f"{name} in {source} names files to read, {key}: {shown(value)}: remove it, a tokenizer's files "
                    "are found by their own names"
                )


def _names_files(key: str, value: Any) -> bool:
    if not value or key == _UNREAD:
        return False
    if key == "fast_tokenizer_files":  # looked up in the folder
        return not (isinstance(value, list) and all(_plain(one) for one in value))
    return key.endswith("_file") or key == "init_inputs"


def _settings(plain: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what it holds, at any depth."""
    if isinstance(plain, dict):
        yield from plain.items()
    for value in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ():
        yield from _settings(value)


def _plain(name: Any) -> bool:
    """Whether it is a file's name without a way to it, on any system."""
    return isinstance(name, str) and name not in ("", "..") and PureWindowsPath(name).name == name
