"""What users give a model and get from it: one file per modality, found by the one that the signature names."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from coda_targets.errors import InputError
from coda_targets.signature import Arrays

if TYPE_CHECKING:
    from coda_targets.bundle import Bundle


class Codec(Protocol):
    """From what people give to arrays, and from a model's outputs to one plain record for each."""

    def encode(self, items: Sequence[Any], /) -> Any:
        """A batch as the model takes it, whose ``inputs`` are arrays by name."""

    def decode(self, outputs: Arrays, encoded: Any, /, *, raw: bool = False) -> list[dict[str, Any]]:
        """One record an item; raw: logits instead of scores."""


OpenCodec = Callable[["Bundle", str | None], Codec]
_CODECS = {"text": "coda_targets.modalities.text:TextCodec"}  # module and name, imported when it is asked for


def register(modality: str, place: str) -> None:
    """Have bundles of a modality be encoded and decoded by a class of any package.

    Args:
        place: ``module:name`` of what makes a ``Codec`` of a bundle and the name of a task.
    """
    _CODECS[modality] = place


def open_codec(bundle: "Bundle", task: str | None = None) -> Codec:
    """The codec for a bundle, and of several tasks for one.

    Raises:
        InputError: none is known for what the model takes, or no such task.
        CodaError: as the codec says.
    """
    modality = bundle.manifest.signature.modality
    if modality not in _CODECS:
        known = ", ".join(_CODECS)
        raise InputError(f"{bundle.folder} takes {modality}, not {known}: feed arrays through Bundle.run")
    module, _, name = _CODECS[modality].partition(":")
    opened: OpenCodec = getattr(import_module(module), name)
    return opened(bundle, task)
