"""The modules after pooling, as sentence-transformers saves them: one folder each."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from coda_compile.errors import CompileError
from coda_compile.sources.plain import only
from coda_compile.sources.tensors import read_tensors
from coda_models.errors import CheckpointError, ConfigError, UnsupportedModelError
from coda_models.sentence import ACTIVATIONS, SentenceModule
from coda_ops.errors import shown
from coda_ops.foreign_json import read_json

_EMBEDDING = "sentence_embedding"
_T = TypeVar("_T")
Made = tuple[SentenceModule, dict[str, Tensor]]


def make(kind: str, folder: Path) -> Made:
    """The module of a folder, one of ``MAKERS``, with its tensors.

    Raises:
        UnsupportedModelError: a setting that has no compiled form, by its name.
        CompileError: a damaged file.
        CheckpointError: weights that are missing, too many or of other shapes.
    """
    return settled(folder, lambda: MAKERS[kind](folder))


def settled(where: Path, make: Callable[[], _T]) -> _T:
    """What is made of a file's values, or a sentence that says which file has bad ones."""
    try:
        return make()
    except ConfigError as error:
        raise CompileError(f"{where} is damaged: {error}") from None


def _dense(folder: Path) -> Made:
    path = folder / "config.json"
    plain = read_json(path, dict, "it should describe a Dense module", CompileError)
    names = ("module_input_name", "module_output_name")
    only(path, plain, "in_features", "out_features", "bias", "activation_function", *names)
    if strange := [plain[key] for key in names if plain.get(key) not in (None, _EMBEDDING)]:
        raise UnsupportedModelError(
            f"{path} names {strange[0]!r}: only a Dense of whole embeddings has a compiled form"
        )
    name = plain.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = str(name).rpartition(".")[2]
    if not str(name).startswith("torch.nn.") or activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModelError(
            f"{path} has the activation {shown(name)}, which has no compiled form: {known} have one"
        )
    bias = plain.get("bias", True)
    module = SentenceModule("Dense", plain.get("in_features", 0), plain.get("out_features", 0), bias, activation)
    shapes = {"linear.weight": (module.outputs, module.inputs), **({"linear.bias": (module.outputs,)} if bias else {})}
    return module, _weights(folder, shapes)


def _layer_norm(folder: Path) -> Made:
    path = folder / "config.json"
    plain = read_json(path, dict, "it should describe a LayerNorm module", CompileError)
    only(path, plain, "dimension")
    width = plain.get("dimension", 0)
    module = SentenceModule("LayerNorm", width, width)
    return module, _weights(folder, {"norm.weight": (width,), "norm.bias": (width,)})


MAKERS: dict[str, Callable[[Path], Made]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda _: (SentenceModule("Normalize"), {}),
}


def _weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a module, all of them and no others."""
    tensors = read_tensors(folder, "model.safetensors", "pytorch_model.bin")
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if bad := sorted(name for name in found | shapes if found.get(name) != shapes.get(name)):
        raise CheckpointError(f"the weights in {folder} do not fit its config.json in {bad[0]!r}: save the model again")
    return {name: tensor.float() for name, tensor in tensors.items()}
