"""From a torch model to an onnx_ir model whose CoDA operators are single nodes, each tagged with layer and role."""

import ast
import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from inspect import Parameter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import values
from torch import Tensor, nn

from coda_compile.errors import CompileError
from coda_models.layers.attention import Attention, LogitBias
from coda_models.layers.bottleneck import Bottlenecks
from coda_models.layers.feed_forward import FeedForward
from coda_models.layers.layer import Block, CodaLayer
from coda_models.model import CodaModel
from coda_ops import VERSION, catalogue
from coda_ops.errors import first_line
from coda_targets.routing import LAYER_TAG, ROLE_TAG
from coda_targets.signature import Signature

TAGS = (LAYER_TAG, ROLE_TAG)  # the metadata that every node keeps to the end
OUTPUTS = {
    "sequence-classification": ("logits",),
    "token-classification": ("logits",),
    "feature-extraction": ("last_hidden_state", "sentence_embedding"),
}
OOD_OUTPUTS = ("ood_score", "is_ood")
_SCOPES = "pkg.torch.onnx.name_scopes"
_DYNAMIC = torch.export.Dim.DYNAMIC
_ATTRIBUTES = {"IntType": int, "FloatType": float}  # kinds of a torch operator's arguments that are no tensors


class _Exported(nn.Module):
    """The positional, tensors-only face of a model that the exporter wants.

    The exporter reads the names of inputs from the signature of ``forward``, which therefore has the model's own.
    """

    def __init__(self, model: CodaModel) -> None:
        super().__init__()
        self.model = model
        self.outputs = output_names(model)
        names = model.signature.names

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            output = self.model(**dict(zip(names, inputs, strict=True)))
            return tuple(getattr(output, name) for name in self.outputs)

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # as inspect has it
        self.forward = forward


def output_names(model: CodaModel) -> tuple[str, ...]:
    """What a compiled model gives, in order."""
    return OUTPUTS[model.coda_config.task] + (() if model.ood is None else OOD_OUTPUTS)


def export(model: CodaModel, opset: int) -> ir.Model:
    """Export with the dynamic axes that the model's signature names.

    Args:
        model: in evaluation mode.
        opset: of the default domain.

    Returns:
        A model whose axes are named as the signature names them, in which each of our torch operators is one node,
        without a function body yet, and whose nodes carry ``coda.layer`` and ``coda.role``.
    """
    # Sizes 0 and 1 would be specialised, for K as much as for batch and length.
    deepest = max((float(layer.reduction) for layer in model.coda_layers()), default=1.0)
    signature = model.signature
    inputs = signature.random(2, min(signature.max_length, max(11, int(2 * deepest) + 3)))
    dynamic = {
        one.name: {i: _DYNAMIC for i, axis in enumerate(one.axes) if isinstance(axis, str)} for one in signature.inputs
    }
    wrapper = _Exported(model).eval()
    try:
        with quiet():
            program = torch.onnx.export(
                wrapper,
                tuple(map(torch.from_numpy, inputs.values())),
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(inputs),
                output_names=list(wrapper.outputs),
                opset_version=opset,
                custom_translation_table=_translations(),
                optimize=False,
                verbose=False,
            )
    except Exception as error:
        if any(isinstance(one, KeyboardInterrupt) for one in _behind(error)):  # torch reports it as a failed export
            raise KeyboardInterrupt from None
        if not isinstance(error, torch.onnx.OnnxExporterError):
            raise
        raise CompileError(f"torch could not export this model: {first_line(error.__cause__ or error)}") from error
    if program is None:
        raise CompileError("torch exported nothing")
    exported = program.model
    _name_axes(exported, signature)
    _tag(exported, wrapper)
    return exported


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that were being handled when it was raised."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            waiting += [one.__cause__, one.__context__]
            yield one


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporter and converter say of themselves; what they do wrong, verification finds."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _translations() -> dict[Any, Callable[..., Any]]:
    """For each of our torch operators, what makes the one node of it that stands in the exported model."""
    translations = {}
    for operator in catalogue.OPERATORS:
        if operator.torch:
            operator.module()  # registers the torch operator
            translations[getattr(torch.ops.coda, operator.torch).default] = _translation(operator)
    return translations


def _translation(operator: catalogue.Operator) -> Callable[..., Any]:
    """Tensors become inputs, in order; numbers become attributes of the same name."""
    make = values.Op(values.Opset(operator.domain, VERSION), operator.name, operator.schema())
    arguments = getattr(torch.ops.coda, operator.torch).default._schema.arguments
    kinds = {one.name: _ATTRIBUTES.get(one.type.kind()) for one in arguments}

    def translate(*given: Any) -> Any:
        by_name = dict(zip(kinds, given, strict=True))
        inputs = [value for name, value in by_name.items() if kinds[name] is None]
        return make(*inputs, **{name: value for name, value in by_name.items() if kinds[name] is not None})

    # The exporter reads inputs and attributes off the signature.
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kinds[name] or Any) for name in kinds]
    translate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    translate.__annotations__ = {one.name: one.annotation for one in parameters}
    return translate


def _name_axes(model: ir.Model, signature: Signature) -> None:
    """Give the dynamic axes of inputs and outputs the names that people read."""
    names: dict[str, str] = {}
    for value, one in zip(model.graph.inputs, signature.inputs, strict=True):
        assert value.shape is not None
        for dim, axis in zip(value.shape, one.axes, strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names[dim.value] = str(axis)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(
                [names.get(str(d.value), d.value) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            )


def _tag(model: ir.Model, wrapper: nn.Module) -> None:
    """Tag every node with the layer and role of the module that made it, known from modules' types, norms' from their
    places.

    A module without a role of its own has that of the module it is in, and a layer's is routing.
    """
    tags: dict[str, tuple[str, str]] = {}
    for path, module in wrapper.named_modules():
        if isinstance(module, CodaLayer):
            layer = path.rsplit(".", 1)[-1]
            tags[path] = (layer, "routing")
            norms = {id(norm) for norm in module.block.norms}
            for child, inner in list(module.named_modules())[1:]:
                inside = f"{path}.{child}".rpartition(".")[0]
                role = "norm" if id(inner) in norms else _role(child, inner)
                tags[f"{path}.{child}"] = (layer, role or tags[inside][1])
    top = {
        "model.embeddings": "embeddings",
        "model.head": "head",
        "model.after_pooling": "head",
        "model.ood": "ood",
        "model.final_norm": "norm",
    }
    for node in model.graph:
        scopes = [s for s in ast.literal_eval(node.metadata_props.get(_SCOPES, "[]")) if isinstance(s, str)]
        found = next((tags[s] for s in reversed(scopes) if s in tags), None)
        layer_name, role = found or (None, next((top[s] for s in reversed(scopes) if s in top), "model"))
        node.metadata_props[ROLE_TAG] = role
        if layer_name is not None:
            node.metadata_props[LAYER_TAG] = layer_name


def _role(child: str, module: nn.Module) -> str | None:
    if child in ("router", "adapter", "stand_in", "key_value"):
        return child
    if isinstance(module, Bottlenecks):
        return "adapter"
    if isinstance(module, LogitBias):
        return "routing"
    if isinstance(module, Attention):
        return "attention"
    if isinstance(module, FeedForward):
        return "feed_forward"
    if isinstance(module, nn.LayerNorm):
        return "norm"
    return "block" if isinstance(module, Block) else None


def save_onnx(model: ir.Model, path: Path, *, external_above: int = 1 << 30) -> None:
    """Write a model; weights go to ``<name>.data`` beside it once they exceed ``external_above`` bytes."""
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if weights > external_above else None)
