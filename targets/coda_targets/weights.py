"""Resolve external weights of an ONNX file through links.

The hub's cache stores every file as a link into another folder. onnxruntime loads such a model from its path, but
refuses it from memory, because the weights then lie outside the folder that it was given.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from coda_targets.errors import BundleError


def find_weights(proto: Any, folder: Path) -> Path | None:
    """Have a model in memory name what its weights are where links lead to, wherever that is.

    Args:
        proto: an ``onnx.ModelProto``; its locations are changed in place.
        folder: of the model's file.

    Returns:
        The folder that its locations are relative to, ``None`` of a model that holds its weights itself.

    Raises:
        BundleError: a location that names something outside of the folder.
    """
    entries = list(_locations(proto))
    if not entries:
        return None
    for entry in entries:
        name = PurePosixPath(entry.value)
        if name.is_absolute() or ".." in name.parts or "\\" in entry.value:
            raise BundleError(f"its weights are {entry.value!r}, which lies outside of {folder}")
    real = {entry.value: (folder / entry.value).resolve() for entry in entries}
    if absent := [name for name, path in real.items() if not path.is_file()]:
        raise BundleError(f"its weights {absent[0]!r} are no file in {folder}")
    home = folder.resolve()
    if not all(path.is_relative_to(home) for path in real.values()):
        home = Path(os.path.commonpath([path.parent for path in real.values()]))
        for entry in entries:
            entry.value = real[entry.value].relative_to(home).as_posix()
    return home


def locations(proto: Any) -> list[str]:
    """Names of the files that a model in memory has weights in, sorted, as it writes them."""
    return sorted({entry.value for entry in _locations(proto)})


def _locations(proto: Any) -> Iterator[Any]:
    functions = [node for function in proto.functions for node in function.node]
    for tensor in (*proto.graph.initializer, *_tensors([*proto.graph.node, *functions])):
        yield from (entry for entry in tensor.external_data if entry.key == "location")


def _tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    """Constants of nodes, and all tensors of their branches and loop bodies."""
    for node in nodes:
        for attribute in node.attribute:
            yield from (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else []))
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from inner.initializer
                yield from _tensors(inner.node)
