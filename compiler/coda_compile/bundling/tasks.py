"""Several tasks on one backbone: the trained parameters of each are a file that a run switches in."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor

from coda_compile.bundling.writer import label_names, logits_of, ood_info
from coda_compile.errors import CompileError
from coda_models.model import CodaModel
from coda_targets import task_adapters
from coda_targets.manifest import TaskInfo
from coda_targets.routing import ROLE_TAG

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABELS = "labels"  # the axis that differs from task to task
_FITTED = {"model.ood.score.known": "known", "model.ood.score.means": "classes", "model.ood.score.lengths": "classes"}


def check_name(name: str) -> str:
    """A task's name, which becomes that of a file.

    Raises:
        CompileError: not made of letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(name):
        raise CompileError(f"{name!r} cannot name a task: use up to 64 letters, digits, dots, dashes and underscores")
    return name


def check(models: Mapping[str, CodaModel]) -> None:
    """Refuse tasks that could not share one graph and one backbone.

    Raises:
        CompileError: which two, and in what they differ.
    """
    (first, model), *others = models.items()
    if not any(layer.adapter or layer.stand_in for layer in model.coda_layers()):
        raise CompileError(f"{first} has no adapters to swap: tasks on one backbone are CoDA checkpoints")
    for name, other in others:
        named = ("backbones", "configurations", "heads", "longest texts")
        for what, a, b in zip(named, _shared(model), _shared(other), strict=True):
            if a != b:
                raise CompileError(f"{first} and {name} have different {what}: compile them into bundles of their own")


def _shared(model: CodaModel) -> tuple[Any, Any, Any, int]:
    """What tasks of one graph have in common: backbone, configuration, shapes of what is trained, longest text."""
    config = model.coda_config.to_dict()
    digest = config.pop("backbone_sha256")
    config.pop("backbone")
    axes = {name: _axes(model, name, tensor) for name, tensor in parameters(model).items()}
    return digest, config, axes, model.signature.max_length


def parameters(model: CodaModel) -> dict[str, Tensor]:
    """What is a task's own, trained or fitted, by the names that the exporter gives them.

    Routers and stand-ins of layers at r = 1 are no part of it: nothing asks them.
    """
    state = model.state_dict()
    fitted = [name for name in state if name.startswith("ood.")]
    dense = [i for i, layer in enumerate(model.coda_layers()) if layer.reduction == 1]
    idle = tuple(f"layers.{i}.{part}." for i in dense for part in ("router", "stand_in", "key_value"))
    trained = [name for name in model.trainable_names() if not name.startswith(idle)]
    return {f"model.{name}": state[name].detach().float() for name in (*trained, *fitted)}


def _axes(model: CodaModel, name: str, tensor: Tensor) -> list[int | str]:
    """A parameter's shape; the last layer of a head counts labels, a detector classes or texts."""
    axes: list[int | str] = list(tensor.shape)
    if name in _FITTED:
        axes[-1] = _FITTED[name]
    if name.startswith("model.head.") and axes[0] == int(model.hf_config.num_labels):
        axes[0] = _LABELS
    return axes


def make_swappable(compiled: ir.Model, model: CodaModel) -> None:
    """Turn what a task trains into initializers that a run may override, in place.

    Raises:
        CompileError: a parameter that the graph holds in another form.
    """
    graph = compiled.graph
    for name, tensor in parameters(model).items():
        value = graph.initializers.get(name)
        if value is None:
            raise CompileError(f"the graph holds {name} in another form, so tasks of this kind cannot share it")
        axes = _axes(model, name, tensor)
        graph.inputs.append(value)
        if any(isinstance(axis, str) for axis in axes):
            value.shape = ir.Shape(axes)
    labels = int(model.hf_config.num_labels)
    for node in graph:
        role = node.metadata_props.get(ROLE_TAG)
        for output in node.outputs if role in ("head", "ood") else ():
            if output.shape is None or output.is_graph_output():
                continue
            if role == "ood":
                output.shape = None  # the runtime finds them from what a run swaps in
            elif output.shape.rank() and output.shape[-1] == labels:
                output.shape = ir.Shape([*output.shape[:-1], _LABELS])
    for output in graph.outputs:
        if output.name == "logits" and output.shape is not None:
            output.shape = ir.Shape([*output.shape[:-1], _LABELS])


def info(name: str, model: CodaModel) -> TaskInfo:
    """What the manifest says of a task."""
    return TaskInfo(name, task_adapters.path_of(name), label_names(model), logits_of(model), ood_info(model.ood))


def write(folder: Path, name: str, model: CodaModel) -> Path:
    """A task's file in a bundle."""
    path = folder / task_adapters.path_of(name)
    path.parent.mkdir(exist_ok=True)
    task_adapters.write(path, {name: tensor.numpy() for name, tensor in parameters(model).items()})
    return path
