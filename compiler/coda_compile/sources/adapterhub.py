"""Folders that the ``adapters`` library saved: bottlenecks become part of the layers, LoRA is merged, prefixes become
constants."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from coda_compile.errors import OptionError
from coda_compile.sources import ADAPTER_CONFIG
from coda_compile.sources import ADAPTER_SETUP as SETUP
from coda_compile.sources.adapterhub_heads import HEADS, activate_head, fill_head, head_form, read_settings, set_classes
from coda_compile.sources.adapterhub_parts import fill_invertible, fill_layer, invertible_form, layer_parts
from coda_compile.sources.adapterhub_sizes import check_sizes
from coda_compile.sources.reference import check_same, few_tokens, wanted_answers
from coda_compile.sources.sentence import Sentence, sentence_of_adapter
from coda_compile.sources.torch_model import TorchModel
from coda_models.architectures import signature_of
from coda_models.backbone import folder_of, load_backbone, load_tokenizer, quiet
from coda_models.checkpoint import check_finite
from coda_models.config import CodaConfig
from coda_models.conversion import convert
from coda_models.errors import CheckpointError, UnsupportedModelError
from coda_models.learned_parts import LearnedParts
from coda_models.model import CodaModel
from coda_ops.errors import cut, first_line, shown

_METHODS = {None: "bottlenecks", "lora": "LoRA", "prefix_tuning": "prefix-tuning"}
_WAYS_OUT = {
    "Fuse": "AdapterFusion's attention has no compiled form: train a Stack, or one adapter for the task",
    "Parallel": "several answers to one text are several bundles: compile each adapter by itself",
    "Average": "average the weights first, with average_adapter, and save that adapter",
}


def read(folder: Path, backbone: str | None) -> TorchModel:
    """Load a folder that ``save_adapter`` or, for a Stack, ``save_adapter_setup`` wrote, with its base model.

    Args:
        backbone: the base model; by default what the folder names.

    Raises:
        UnsupportedModelError: a method, composition, head or base model that has no compiled form.
        CheckpointError: weights that are missing, too many, damaged, or of another base model.
        CompileError: a model that computes something else than the library's.
    """
    names, parts = _parts(folder)
    for part in parts:
        _check(part, read_settings(part / ADAPTER_CONFIG))
    about = read_settings(parts[-1] / ADAPTER_CONFIG)
    base = backbone or about.get("model_name")
    if not isinstance(base, str) or not base:
        raise OptionError("{path} names no base model: pass its folder as {backbone}", path=folder)
    import adapters  # after everything that can be told without it
    from adapters.composition import Stack

    plain = load_backbone(base, "feature-extraction", trained=True)
    for part in parts:
        _check_base(part, plain.config, base)
        check_sizes(part, plain.config.hidden_size)
    with _quiet():
        library = _library_model(adapters.AutoAdapterModel, plain)
        for name, part in zip(names, parts, strict=True):
            _load(library, name, part)
        library.active_adapters = Stack(*names)
        place = activate_head(library, folder, parts[-1])
        library.float().eval()  # an adapter may have been trained in another precision than its base
        head = dict(library.heads.items()).get(library.active_head)
        _check_ready(library, names, head)
        if head is not None and head_form(head).pooler:
            load_backbone(base, "feature-extraction", trained=True, reads_pooler=True)  # or it would be random
        inputs = few_tokens(signature_of(plain.config))
        wanted = wanted_answers(library, inputs, "the adapters library")
        sentence = sentence_of_adapter(folder, folder_of(base)) if head is None else None
        model = _converted(library, plain, names, head, place, sentence)
    tokenizer = load_tokenizer(folder) or load_tokenizer(base)
    if sentence is not None:
        sentence.complete(model, tokenizer)
    check_finite(model.state_dict(), folder)
    check_same(model, inputs, wanted, "the adapters library")
    if sentence is None:
        return TorchModel("AdapterHub adapter", model, tokenizer)
    return TorchModel(f"AdapterHub adapter{sentence.note}", model, tokenizer, sentence.about)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library, which says in several ways what is not yet active."""
    logger = logging.getLogger("adapters")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _parts(folder: Path) -> tuple[list[str], list[Path]]:
    """Names and folders of the adapters that run behind each other."""
    if not (folder / SETUP).is_file():
        return ["adapter"], [folder]
    setup = read_settings(folder / SETUP).get("adapter_setup")
    children = setup.get("children") if isinstance(setup, dict) else None
    if not isinstance(setup, dict) or not isinstance(children, list) or not all(isinstance(c, dict) for c in children):
        raise CheckpointError(f"{folder / SETUP} is damaged: it should say how adapters are composed")
    kinds = [str(one.get("type")) for one in (setup, *children)]
    wanted = ["Stack", *("single" for _ in children)]
    if kinds != wanted:
        kind = next(kind for kind, right in zip(kinds, wanted, strict=True) if kind != right)
        way_out = _WAYS_OUT.get(kind, "save one adapter, or a Stack of some")
        raise UnsupportedModelError(f"the composition {cut(kind)} in {folder} cannot be compiled: {way_out}")
    inside = [child.get("children") for child in children]
    names: list[Any] = [name for some in inside for name in (some if some and isinstance(some, list) else [None])]
    if not names or any(not isinstance(name, str) or Path(name).name != name or name == ".." for name in names):
        raise CheckpointError(f"{folder / SETUP} is damaged: it should name the folders of its adapters")
    return names, [folder / name for name in names]


def _check(folder: Path, about: dict[str, Any]) -> None:
    """Refuse what has no compiled form, before anything is loaded."""
    config = about.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} is damaged: it should hold the adapter's config")
    for one in config.get("configs", [config]) if config.get("architecture") == "union" else [config]:
        method = one.get("architecture")
        if method not in _METHODS:
            known = ", ".join(_METHODS.values())
            raise UnsupportedModelError(f"the method {shown(method)} of {folder} is not supported: use {known}")
        if one.get("use_gating"):
            raise UnsupportedModelError(
                f"{folder} has gates that are means over padding too, so an answer would depend on what it is batched "
                "with: train it with use_gating=False"
            )
        if one.get("phm_layer"):
            raise UnsupportedModelError(
                f"{folder} has Compacter's PHM layers, which are not supported: use bottlenecks"
            )


def _check_base(folder: Path, config: Any, base: str) -> None:
    about = read_settings(folder / ADAPTER_CONFIG)
    for key in ("model_type", "hidden_size"):
        if about.get(key) not in (None, getattr(config, key, None)):
            raise OptionError(
                "{folder} was trained on a base model with {key} {wanted}, but {base} has {found!r}: pass the "
                "original one as {backbone}",
                folder=folder,
                key=key,
                wanted=shown(about[key]),
                base=base,
                found=getattr(config, key, None),
            )


def _library_model(auto: Any, plain: Any) -> Any:
    """The library's own form of a base model."""
    try:
        library = auto.from_config(plain.config)
    except (KeyError, ValueError):
        raise UnsupportedModelError(
            f"the adapters library has no model of type {plain.config.model_type!r}: use one of its own"
        ) from None
    library.base_model.load_state_dict(plain.state_dict(), strict=False)
    return library


def _load(library: Any, name: str, folder: Path) -> None:
    """One adapter and its head, whole."""
    info: dict[str, Any] = {}
    try:
        safe = (folder / "adapter.safetensors").is_file()
        library.load_adapter(str(folder), load_as=name, loading_info=info, use_safetensors=safe)
    except Exception as error:  # the library, torch and safetensors each have their own kinds
        raise CheckpointError(f"the adapter in {folder} cannot be read: {first_line(error)}") from error
    for key, what in (("missing_keys", "lack"), ("unexpected_keys", "have, beyond what its config speaks of,")):
        if info.get(key):
            raise CheckpointError(f"the weights in {folder} {what} {sorted(info[key])[0]!r}: save the adapter again")


def _loras(library: Any, names: list[str]) -> list[str]:
    """Those of the adapters that change weights."""
    tables = [module.loras for module in library.modules() if hasattr(module, "loras")]
    return [name for name in names if any(name in table for table in tables)]


def _check_ready(library: Any, names: list[str], head: Any) -> None:
    """Refuse what the library may load and would not run, or not in a form of ours."""
    loras = _loras(library, names)
    if len(loras) > 1:
        raise UnsupportedModelError(f"of the stacked adapters {', '.join(loras)} are LoRA: merge all but one first")
    kind = None if head is None else head.config.get("head_type")
    if head is not None and kind not in HEADS:
        raise UnsupportedModelError(f"a head of type {shown(kind)} is not supported: use one of {', '.join(HEADS)}")


def _converted(
    library: Any, plain: Any, names: list[str], head: Any, place: Path, sentence: Sentence | None
) -> CodaModel:
    """The library's model as one of ours."""
    for name in _loras(library, names):
        _merge(library, name)
    own = library.base_model.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    base = library.base_model
    layers = [theirs for _, theirs in base.iter_layers()]
    parts = LearnedParts(
        layers=[layer_parts(base, theirs, names) for theirs in layers],
        invertible=invertible_form(base, names),
        head=None if head is None else head_form(head),
    )
    settings: dict[str, Any] = {"task": "feature-extraction", "pooling": "first"}
    if head is not None:
        settings["task"] = HEADS[head.config["head_type"]]
        set_classes(plain.config, head, place)
    elif sentence is not None:
        settings = sentence.settings
    model = convert(plain, CodaConfig(reduction=1, bottleneck=0, parts=parts, **settings))
    for theirs, layer in zip(layers, model.coda_layers(), strict=True):
        fill_layer(base, theirs, layer.block, names)
    fill_invertible(model, base, names)
    if head is not None:
        fill_head(model, head)
    return model


def _merge(library: Any, name: str) -> None:
    """Fold a LoRA into weights and biases as the library's forward applies it; its own ``merge_adapter`` leaves biases
    alone, which IA3 and DoRA scale, and DoRA's alpha."""
    from adapters import ForwardContext
    from adapters.methods.lora import LoRALayer

    with torch.no_grad(), ForwardContext(library, torch.empty(0, 1)):
        ForwardContext.get_context().shared_parameters = library.base_model.shared_parameters
        for layer in library.modules():
            if not isinstance(layer, LoRALayer) or name not in layer.loras:
                continue
            lora, weight = layer.loras[name], layer.weight
            delta = lora.delta_w  # [out, in], or [out, 1] where it scales
            if lora.composition_mode == "scale":
                factor, added = (delta * lora.scaling).flatten(), torch.zeros_like(weight)
            elif lora.use_dora:
                factor = lora.m.weight.flatten() / torch.linalg.norm(weight + delta, dim=1)
                added = delta * lora.scaling
            else:
                factor, added = torch.ones(len(weight)), delta * lora.scaling
            weight.copy_((weight + added) * factor.unsqueeze(1))
            if layer.bias is not None:
                layer.bias.mul_(factor)
