"""What can be compiled, recognised by what lies on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.errors import CompileError, OptionError
from coda_ops.files import check_plain
from coda_ops.foreign_json import json_value, read_json
from coda_targets.manifest import MANIFEST, MODEL, PACKAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coda_compile.options import CompileOptions
    from coda_compile.sources.compilable import Compilable
    from coda_compile.sources.torch_model import TorchModel
    from coda_models.model import CodaModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_SETUP = "adapter_setup.json"  # of several that the adapters library saved together
# By the names that libraries look for: a Trainer leaves its arguments and optimizer in .bin and .pt files, too.
_TORCH_WEIGHTS = ("*.safetensors", "pytorch_*.bin", "adapter_model.bin", "model.pt")
ONNX_FOLDER = "onnx"  # of a model's folder that holds its files for several libraries


def read(
    model: "CodaModel | Path | str | Mapping[str, CodaModel | Path | str]", options: "CompileOptions"
) -> "Compilable":
    """Whatever ``compile`` is given, as its options ask.

    Raises:
        CodaError: it cannot be read, or cannot be so.
    """
    source = _read_any(model, options)
    source.apply(options)
    return source


def _read_any(
    model: "CodaModel | Path | str | Mapping[str, CodaModel | Path | str]", options: "CompileOptions"
) -> "Compilable":
    if isinstance(model, Mapping):
        from coda_compile.bundling.tasks import check_name
        from coda_compile.sources.shared_backbone import SharedBackbone

        if not model:
            raise CompileError("there is no model to compile: give one or more")
        return SharedBackbone.of({check_name(name): read_model(one, options.backbone) for name, one in model.items()})
    if isinstance(model, Path | str) and (graph := find_onnx(Path(model))) is not None:
        from coda_compile.sources.onnx_model import OnnxModel

        return OnnxModel.read(graph, options)
    return read_model(model, options.backbone)


def read_model(model: "CodaModel | Path | str", backbone: Path | str | None) -> "TorchModel":
    """A torch model, in memory or by its path.

    Raises:
        OptionError: a backbone beside a model that needs none.
        CodaError: as ``read_source`` says.
    """
    if isinstance(model, Path | str):
        return read_source(Path(model), backbone=None if backbone is None else str(backbone))
    from coda_compile.sources.torch_model import TorchModel

    if backbone is not None:
        raise OptionError("the model is complete: leave {backbone} out")
    return TorchModel.in_memory(model)


def read_source(path: Path, *, backbone: str | None = None) -> "TorchModel":
    """Load a ``model.pt``, a CoDA checkpoint folder, a folder of transformers or sentence-transformers, or adapters of
    PEFT or AdapterHub. The model takes no more tokens than its tokenizer gives.

    Args:
        backbone: of a delta or an adapter, a folder or a hub name; by default what it names.

    Raises:
        CompileError: the path is none of these.
        OptionError: a backbone beside a model that needs none.
        CodaError: as the loaders say.
    """
    from coda_compile.sources.truncation import longest

    source = _read(path, backbone)
    source.model.signature = longest(source.model.signature, source.tokenizer)
    return source


def _read(path: Path, backbone: str | None) -> "TorchModel":
    """A source as its library has it."""
    check_plain(path)
    if not path.exists():
        raise CompileError(f"{path} does not exist: give a model.pt, a checkpoint folder or a Hugging Face folder")
    if (path / MANIFEST).is_file():
        raise CompileError(f"{path} is a compiled bundle already: give the model that it was made from")
    if _is_package(path):
        raise CompileError(f"{path} is a model package of ONNX Runtime: give the model that it was made from")
    if path.is_dir() and ((path / ADAPTER_CONFIG).is_file() or (path / ADAPTER_SETUP).is_file()):
        return _read_adapter(path, backbone)
    if path.is_dir() and (named := _named_adapters(path)):
        if len(named) > 1:
            folders = ", ".join(str(one) for one in named)
            raise CompileError(f"{path} holds several adapters: give the folder of one of them ({folders})")
        return _read_adapter(named[0], backbone)
    if find_onnx(path) is not None:
        raise CompileError(f"{path} is an ONNX file, which can be compiled and no more: give what it was exported from")
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "modules.json")):
        raise CompileError(f"{path} is a folder without config.json: give a checkpoint or Hugging Face folder")

    from coda_compile.sources import checkpoint, huggingface
    from coda_models.checkpoint import is_checkpoint_folder

    if path.is_file() or is_checkpoint_folder(path):
        return checkpoint.read(path, backbone)
    if backbone is not None:
        raise OptionError("{path} is complete: leave {backbone} out", path=path)
    return huggingface.read(path)


def find_onnx(path: Path) -> Path | None:
    """The ONNX file that a path means: itself or, in a folder without other weights, model.onnx or onnx/model.onnx."""
    if path.is_dir():
        compiled = (path / MANIFEST).is_file() or _is_package(path)
        if compiled or any(any(path.glob(pattern)) for pattern in _TORCH_WEIGHTS):
            return None
        return next((file for file in (path / MODEL, path / ONNX_FOLDER / MODEL) if file.is_file()), None)
    return path if path.suffix == ".onnx" and path.is_file() else None


def _is_package(folder: Path) -> bool:
    """Whether a folder is a model package of ONNX Runtime, and not some program with a manifest.json of its own."""
    path = folder / PACKAGE
    return path.is_file() and "components" in (json_value(path, dict) or {})


def _named_adapters(folder: Path) -> list[Path]:
    """The folders of adapters with names of their own, in one that PEFT saved and that holds no model itself."""
    if (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        return []
    return sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))


def _read_adapter(folder: Path, backbone: str | None) -> "TorchModel":
    """Load a folder of adapters, by the library that saved it."""
    path = folder / ADAPTER_CONFIG
    plain = read_json(path, dict, "it should be an adapter configuration", CompileError) if path.is_file() else {}
    if "peft_type" in plain:
        from coda_compile.sources import peft

        return peft.read(folder, plain, backbone)

    from coda_compile.sources import adapterhub

    return adapterhub.read(folder, backbone)


def read_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    """A tokenizer from a folder or the hub.

    Raises:
        CompileError: there is none.
        OptionError: there is no such folder, and no hub in reach has it.
    """
    from coda_models.backbone import load_tokenizer

    tokenizer = load_tokenizer(path, what="tokenizer")
    if tokenizer is None:
        raise CompileError(f"{path} holds no tokenizer")
    return tokenizer
