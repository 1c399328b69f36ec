"""The files of a bundle that all variants share, its configuration and tokenizer, and where bundles may be written."""

import json
import warnings
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from coda_compile.bundling.replace_folder import replacing as replacing
from coda_compile.errors import CompileError, CompileWarning, OutputError
from coda_compile.logits import logits_info
from coda_compile.sources.classes import class_names
from coda_models.backbone import AUTO_CLASSES
from coda_models.checkpoint import portable_config
from coda_models.digest import tensor_digest
from coda_models.model import CodaModel
from coda_models.ood import OodDetector
from coda_models.provenance import public_name, without_places
from coda_targets import BundleError
from coda_targets.bundle_files import unlisted
from coda_targets.fidelity import Fidelity
from coda_targets.manifest import LayerInfo, LogitsInfo, OodInfo, read_manifest
from coda_targets.signature import Signature


def check_output(folder: Path) -> None:
    """Refuse to replace anything but a bundle with nothing else in it, or an empty folder.

    Args:
        folder: absolute, no link.

    Raises:
        OutputError: something else is there, it cannot be replaced, or its parent is not there.
    """
    if not folder.parent.is_dir():
        raise OutputError(f"{folder.parent} does not exist: make it, or choose another folder")
    if not folder.exists():
        return
    if folder.is_dir() and (folder.is_mount() or folder in (Path.cwd(), *Path.cwd().parents)):
        what = "a mount point" if folder.is_mount() else "the current folder or holds it"
        raise OutputError(f"{folder} is {what} and cannot be replaced: choose a folder inside, as {folder / 'NAME'}")
    if not folder.is_dir():
        raise OutputError(f"{folder} exists and is no bundle: remove it or choose another folder")
    if not any(folder.iterdir()):
        return
    try:
        empty = [place for place in folder.rglob("*") if place.is_dir() and not any(place.iterdir())]
        foreign = [*unlisted(folder, read_manifest(folder)), *(str(place.relative_to(folder)) for place in empty)]
    except BundleError:
        raise OutputError(f"{folder} exists and is no bundle: remove it or choose another folder") from None
    if foreign:
        raise OutputError(
            f"{folder / foreign[0]} is not part of the bundle there: move it away, or choose another folder"
        )


@dataclass(frozen=True)
class Described:
    """What a bundle says of the model in it; the fields are those of ``Manifest``.

    Attributes:
        config: for config.json, as transformers and optimum expect it.
    """

    task: str
    architecture: str
    config: dict[str, Any]
    signature: Signature
    labels: tuple[str, ...]
    logits: LogitsInfo | None
    model_sha256: str
    width: int = 0
    feed_forward: int = 0
    layers: tuple[LayerInfo, ...] = ()
    coda_config: dict[str, Any] = field(default_factory=dict)
    ood: OodInfo | None = None
    fidelity: Fidelity | None = None


def describe(model: CodaModel, model_sha256: str) -> Described:
    """A model in memory.

    Args:
        model_sha256: of the model as it came, see ``model_digest``.
    """
    hf, coda = model.hf_config, model.coda_config
    block = next(iter(model.coda_layers())).block
    return Described(
        task=coda.task,
        architecture=str(hf.model_type),
        config=transformers_config(model),
        signature=model.signature,
        labels=label_names(model),
        logits=logits_of(model),
        model_sha256=model_sha256,
        width=int(hf.hidden_size),
        feed_forward=block.feed_forward.inner,
        layers=layer_infos(model, model.signature.max_length),
        coda_config={**coda.to_dict(), "backbone": public_name(coda.backbone)},
        ood=ood_info(model.ood),
    )


def transformers_config(model: CodaModel) -> dict[str, Any]:
    """The backbone's configuration, for the head that the model has."""
    config = portable_config(model.hf_config)
    task = model.coda_config.task
    config["architectures"] = [AUTO_CLASSES[task]._model_mapping[type(model.hf_config)].__name__]
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """config.json."""
    _write_json(folder / "config.json", without_places(config))


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, signature: Signature) -> None:
    """Tokenizer files whose tokenizer.json alone truncates and pads as the model was trained to.

    One that has no tokenizer.json form is left out, and tokens that the model cannot look up are named, each with a
    ``CompileWarning``.

    Args:
        signature: of the model.

    Raises:
        CompileError: a tokenizer without a padding token.
    """
    if not tokenizer.is_fast:
        warnings.warn(
            f"the bundle goes without a tokenizer, since {type(tokenizer).__name__} has no tokenizer.json form: feed "
            "token ids, or compile it with a fast one",
            CompileWarning,
            stacklevel=2,
        )
        return
    vocabulary, longest = signature.lead.size, signature.max_length
    if beyond := [token for token, i in tokenizer.get_vocab().items() if i >= vocabulary]:
        warnings.warn(
            f"the tokenizer has {len(beyond)} more tokens than the {vocabulary} that the model knows, {min(beyond)!r} "
            "among them, and texts that hold one cannot be run: train the model with resize_token_embeddings, or leave "
            "them out",
            CompileWarning,
            stacklevel=2,
        )
    if tokenizer.pad_token_id is None:
        raise CompileError(
            f"{type(tokenizer).__name__} has no padding token: set tokenizer.pad_token and save it again"
        )
    tokenizer = deepcopy(tokenizer)  # the caller's stays as it is
    tokenizer.model_max_length = longest
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # which its class may say, not its file
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(longest, direction=tokenizer.truncation_side)
    backend.enable_padding(
        pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token, pad_type_id=tokenizer.pad_token_type_id
    )
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    _write_json(settings, without_places(json.loads(settings.read_text("utf-8"))))


def layer_infos(model: CodaModel, tokens: int) -> tuple[LayerInfo, ...]:
    """How each layer routes a text of some tokens, bottom first."""
    config = model.coda_config
    return tuple(
        LayerInfo(
            str(layer.reduction),
            layer.attention,
            layer.block.light_width + (0 if layer.adapter is None else config.bottleneck),
            layer.slots(tokens + model.prompt_tokens),
            config.stand_in if layer.reduction != 1 else 0,
            config.key_value_rank if layer.reduction != 1 else 0,
            layer.block.attention.prefix,
            model.prompt_tokens,
        )
        for layer in model.coda_layers()
    )


def label_names(model: CodaModel) -> tuple[str, ...]:
    """Classes in order of the logits; none of a model that classifies nothing.

    Raises:
        CompileError: its configuration does not name each of them once.
    """
    if not model.coda_config.task.endswith("classification"):
        return ()
    return class_names(model.hf_config.id2label, int(model.hf_config.num_labels), "the model's config.json")


def logits_of(model: CodaModel) -> LogitsInfo | None:
    """What a model's logits mean; ``None`` where it classifies nothing.

    Raises:
        CompileError: an activation or a problem type that is not known, or classes that are not named.
    """
    config = portable_config(model.hf_config)
    return logits_info(model.coda_config.task, config, len(label_names(model)), "the model's config.json")


def model_digest(model: CodaModel) -> str:
    """SHA-256 of a model's tensors, before anything is pruned, rounded or fitted."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("ood.")}
    return tensor_digest(own)


def ood_info(detector: OodDetector | None) -> OodInfo | None:
    """What the manifest says of a model's detector, where it has one."""
    return None if detector is None else OodInfo(detector.method, detector.threshold, detector.kept)


def _write_json(path: Path, plain: Any) -> None:
    path.write_text(json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
