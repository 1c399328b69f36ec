"""Prediction heads of the ``adapters`` library, and what they say of their classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from coda_compile.sources import ADAPTER_SETUP as SETUP
from coda_compile.sources.classes import forget_cross_encoder, name_classes, take_beside
from coda_models.architectures import FirstToken
from coda_models.errors import CheckpointError, UnsupportedModelError
from coda_models.model import CodaModel
from coda_ops.errors import first_line
from coda_ops.foreign_json import read_json

HEADS = {
    "classification": "sequence-classification",
    "multilabel_classification": "sequence-classification",
    "tagging": "token-classification",
}
_HEAD_CONFIG = "head_config.json"
_OWN_HEAD = "head"  # for one that came without a name


def read_settings(path: Path) -> dict[str, Any]:
    """A configuration of the library's.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    return read_json(path, dict, "save the adapter again", CheckpointError)


def activate_head(library: Any, folder: Path, last: Path) -> Path:
    """Load the head that an adapter setup asks for, and say where it lies; without, the library has the last adapter's.

    Raises:
        UnsupportedModelError: it asks for several.
        CheckpointError: there is none, or it is damaged.
    """
    setup = read_settings(folder / SETUP).get("head_setup") if (folder / SETUP).is_file() else None
    if not setup:
        return last
    (name,) = setup if isinstance(setup, list) and len(setup) == 1 else [setup]
    if name is True:  # the only one of a model whose class brings it
        name, place = _OWN_HEAD, folder
    elif isinstance(name, str) and Path(name).name == name and name != "..":
        place = folder / name
    else:
        raise UnsupportedModelError(
            f"the head_setup {setup!r} of {folder} cannot be compiled: a bundle has one head, name that one"
        )
    info: dict[str, Any] = {}
    try:
        safe = (place / "model_head.safetensors").is_file()
        library.load_head(str(place), load_as=name, use_safetensors=safe, loading_info=info)
        library.active_head = name
    except Exception as error:  # the library, torch and safetensors each have their own kinds
        raise CheckpointError(f"the head in {place} cannot be read: {first_line(error)}") from error
    if unused := sorted({*info.get("missing_keys", ()), *info.get("unexpected_keys", ())}):
        raise CheckpointError(f"the weights in {place} lack {unused[0]!r}, or have it beyond the head: save it again")
    return place


def add_head(model: CodaModel, plain: Any, head: Any, place: Path) -> None:
    """A prediction head of the library's in the place of ours, with what is said of its classes.

    A head of the library's own says what it is for; that of a plain classifier leaves that to its configuration.
    """
    kind = head.config["head_type"]
    first: list[nn.Module] = []
    if HEADS[kind] == "sequence-classification":
        first = [plain.pooler if head.config.get("use_pooler") else FirstToken()]
    model.head = nn.Sequential(*first, *head.children())
    model.coda_config = replace(model.coda_config, task=HEADS[kind])
    config, number = model.hf_config, int(head.config["num_labels"])
    if (place / _HEAD_CONFIG).is_file() and read_settings(place / _HEAD_CONFIG).get("config") is not None:
        config.problem_type = _problem_type(kind, number)
        forget_cross_encoder(config)
    elif config.num_labels != number:  # the configuration of another head
        config.problem_type = None
        forget_cross_encoder(config)
    numbers = head.config.get("label2id") or {f"LABEL_{i}": i for i in range(number)}
    if sorted(numbers.values()) != list(range(number)):
        raise CheckpointError(f"{place / _HEAD_CONFIG} does not name each of its {number} classes once")
    name_classes(config, sorted(numbers, key=numbers.__getitem__))
    take_beside(config, place)


def _problem_type(kind: str, number: int) -> str | None:
    """What the library trains a head of its own for."""
    if kind == "classification":
        return "regression" if number == 1 else "single_label_classification"
    return "multi_label_classification" if kind == "multilabel_classification" else None
