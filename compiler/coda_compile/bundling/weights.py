"""Writing the ONNX files of a bundle: weights that are equal between variants are stored once.

A single model holds its weights itself. What several models have in common lies in one file beside them, and so do all
weights of a model that is too large for one protobuf message, which holds 2 GiB.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from coda_targets.manifest import WEIGHTS

_SMALLEST = 1024  # bytes; what is smaller costs less where it is
_PAGE = 4096  # bytes; onnxruntime maps weights into memory, page by page
_Key = tuple[int, str]  # bytes and SHA-256 of a tensor


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file as it was written.

    Attributes:
        external_bytes: of its weights, how much lies beside it.
    """

    path: Path
    external_bytes: int


def save_models(folder: Path, models: Mapping[str, ir.Model], *, external_above: int = 1 << 30) -> list[ModelFile]:
    """Write models into a folder, and beside them the weights that they share.

    Args:
        models: by the names of their files, all different.
        external_above: bytes of weights; a model that has more keeps none of them in its own file.
    """
    keys = {file: {value.name: _key(value) for value in _weights(model)} for file, model in models.items()}
    uses = Counter(key for own in keys.values() for key in set(own.values()))
    apart = {key for key, count in uses.items() if count > 1}
    for own in keys.values():
        if sum(size for size, _ in own.values()) > external_above:
            apart |= set(own.values())
    offsets = _write(folder / WEIGHTS, models, keys, apart) if apart else {}
    written = []
    for file, model in models.items():
        with _external(model, folder, keys[file], offsets):
            ir.save(model, folder / file)
        external = sum(size for size, _ in set(keys[file].values()) & apart)
        written.append(ModelFile(folder / file, external))
    return written


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    """Large initializers that no run may override."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or value.is_graph_input():
            continue
        if tensor.nbytes >= _SMALLEST:
            yield value


def _key(value: ir.Value) -> _Key:
    assert value.const_value is not None
    return value.const_value.nbytes, hashlib.sha256(value.const_value.tobytes()).hexdigest()


def _write(
    path: Path, models: Mapping[str, ir.Model], keys: Mapping[str, Mapping[str | None, _Key]], apart: set[_Key]
) -> dict[_Key, int]:
    """Write each tensor once, in order of its first use, and give where it begins."""
    offsets: dict[_Key, int] = {}
    with path.open("wb") as data:
        for file, model in models.items():
            for value in _weights(model):
                key = keys[file][value.name]
                if key in apart and key not in offsets:
                    assert value.const_value is not None
                    data.write(bytes(-data.tell() % _PAGE))
                    offsets[key] = data.tell()
                    data.write(value.const_value.tobytes())
    return offsets


@contextmanager
def _external(
    model: ir.Model, folder: Path, keys: Mapping[str | None, _Key], offsets: Mapping[_Key, int]
) -> Iterator[None]:
    """A model whose weights lie in a file, for as long as the block lasts."""
    kept = {}
    for value in list(_weights(model)):
        tensor, key = value.const_value, keys[value.name]
        if tensor is not None and key in offsets:
            kept[value] = tensor
            shape, name = ir.Shape(tensor.shape.numpy()), str(value.name)
            value.const_value = ir.ExternalTensor(
                WEIGHTS, offsets[key], key[0], tensor.dtype, shape=shape, name=name, base_dir=folder
            )
    try:
        yield
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
