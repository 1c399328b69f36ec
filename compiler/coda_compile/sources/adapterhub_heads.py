"""Prediction heads of the ``adapters`` library, and what they say of their classes."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from coda_compile.sources import ADAPTER_SETUP as SETUP
from coda_compile.sources.classes import forget_cross_encoder, name_classes, take_beside
from coda_models.errors import CheckpointError, UnsupportedModelError
from coda_models.learned_parts import HeadForm
from coda_models.model import CodaModel
from coda_ops.errors import first_line, shown
from coda_ops.foreign_json import read_json

HEADS = {
    "classification": "sequence-classification",
    "multilabel_classification": "sequence-classification",
    "tagging": "token-classification",
}
HEAD_CONFIG = "head_config.json"
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
            f"the head_setup {shown(setup)} of {folder} cannot be compiled: a bundle has one head, name that one"
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


def head_form(head: Any) -> HeadForm:
    """A prediction head of the library's, described."""
    about = head.config
    return HeadForm(
        layers=about["layers"],
        activation=(about["activation_function"] or "linear").lower(),
        pooler=bool(about.get("use_pooler")),
        bias=about.get("bias", True),
        dropout=max((one.p for one in head.children() if isinstance(one, nn.Dropout)), default=0.0),
    )


@torch.no_grad()
def fill_head(model: CodaModel, head: Any) -> None:
    """Give a head that was built of ``head_form`` the weights of the library's."""
    assert isinstance(model.head, nn.Sequential)
    theirs = [getattr(one, "f", one) for one in head.children() if one.state_dict()]  # f is an activation
    own = [one for one in model.head if one.state_dict()][-len(theirs) :]  # the pooler has its weights
    for one, other in zip(own, theirs, strict=True):
        one.load_state_dict(other.state_dict())


def set_classes(config: Any, head: Any, place: Path) -> None:
    """Let a configuration say what a head tells apart, in place.

    A head of the library's own says what it is for; that of a plain classifier leaves that to its configuration.

    Args:
        config: of the base model.
        place: the folder that the head was saved in.

    Raises:
        CheckpointError: it does not name each of its classes once.
        CompileError: as ``take_beside`` says.
    """
    kind, number = head.config["head_type"], int(head.config["num_labels"])
    if (place / HEAD_CONFIG).is_file() and read_settings(place / HEAD_CONFIG).get("config") is not None:
        config.problem_type = _problem_type(kind, number)
        forget_cross_encoder(config)
    elif config.num_labels != number:  # the configuration of another head
        config.problem_type = None
        forget_cross_encoder(config)
    numbers = head.config.get("label2id") or {f"LABEL_{i}": i for i in range(number)}
    if sorted(numbers.values()) != list(range(number)):
        raise CheckpointError(f"{place / HEAD_CONFIG} does not name each of its {number} classes once")
    name_classes(config, sorted(numbers, key=numbers.__getitem__))
    take_beside(config, place)


def _problem_type(kind: str, number: int) -> str | None:
    """What the library trains a head of its own for."""
    if kind == "classification":
        return "regression" if number == 1 else "single_label_classification"
    return "multi_label_classification" if kind == "multilabel_classification" else None
