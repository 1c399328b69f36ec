"""What tests export is exported once: compiling a tiny model is mostly torch's exporter at work."""

import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from coda_compile.export import export as export_anew
from coda_compile.sources.classes import CROSS_ENCODER_KEYS
from coda_models import CodaConfig, CodaModel
from coda_models.digest import tensor_digest

# Fields of a configuration that say nothing of the graph.
_NAMES = (
    *("_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version"),
    *CROSS_ENCODER_KEYS,
)


class Exports:
    """One export for all models of a structure, in files that the workers of a session share; weights are filled in.

    What went through a file keeps its meaning; passes name their nodes differently.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def export(self, model: CodaModel, opset: int) -> ir.Model:
        """As ``coda_compile.export.export``, a graph of its own for each call."""
        path = self.folder / f"{structure(model.eval())}-{opset}.onnx"  # as the exporter leaves it
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}")
            onnx.save(ir.to_proto(export_anew(model, opset)), part)
            part.replace(path)
        proto = onnx.load(path)
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for initializer in proto.graph.initializer:
            if initializer.name in weights:
                weight = weights[initializer.name].detach().contiguous()
                initializer.raw_data = weight.reshape(-1).view(torch.uint8).numpy().tobytes()
        return ir.from_proto(proto)

    def copy(self, model: nn.Module, options: Mapping[str, object], export: Callable[..., None], folder: Path) -> None:
        """Put into a folder the files that ``export(model, folder, **options)`` makes, weights and all.

        Args:
            model: of classes that are not local to a function.
        """
        kept = self.folder / hashlib.sha256(f"{_digest(model, {})} {sorted(options.items())}".encode()).hexdigest()
        if not kept.is_dir():
            part = kept.with_suffix(f".{os.getpid()}")
            part.mkdir()
            export(model, part, **options)
            try:
                part.rename(kept)
            except OSError:  # another worker was faster
                shutil.rmtree(part)
        shutil.copytree(kept, folder, dirs_exist_ok=True)


shared: Exports  # by all workers of the session; conftest.py sets it


def structure(model: CodaModel) -> str:
    """Digest of all that a model is made of but its weights' values: modules, attributes, sizes, other tensors."""
    return _digest(model, model.state_dict(keep_vars=True))


def _digest(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    content = io.BytesIO()
    _Pickler(content, weights).dump(model)
    return hashlib.sha256(content.getvalue()).hexdigest()


class _Pickler(pickle.Pickler):
    """Writes of weights what they are and which of them are one, and of configurations what shapes a graph."""

    def __init__(self, file: io.BytesIO, weights: Mapping[str, Tensor]) -> None:
        super().__init__(file)
        self.fast = True  # a string may be one object in one model and two in another
        self._order: dict[int, int] = {}
        self._weights = {id(tensor) for tensor in weights.values()}

    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, Tensor):
            order = self._order.setdefault(id(obj), len(self._order))
            value = "" if id(obj) in self._weights else tensor_digest({"": obj})
            return order, type(obj).__name__, obj.dtype, tuple(obj.shape), value
        if isinstance(obj, PretrainedConfig):
            return sorted((name, value) for name, value in obj.to_dict().items() if name not in _NAMES)
        if isinstance(obj, CodaConfig) and (obj.backbone or obj.backbone_sha256):
            return replace(obj, backbone="", backbone_sha256="")
        return None


def export(model: CodaModel, opset: int) -> ir.Model:
    """As ``coda_compile.export.export``, shared as compiling shares it: for tests that run passes."""
    from coda_compile.sources import torch_model

    return torch_model.export(model, opset)
