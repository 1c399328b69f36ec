"""ONNX files of any exporter: float32 encoders known by their graph alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from coda_compile.errors import CompileError
from coda_compile.logits import cross_encoder_keys, logits_info
from coda_compile.sources import ONNX_FOLDER
from coda_compile.sources.classes import class_names
from coda_compile.sources.huggingface import TASK_OF_HEAD
from coda_compile.sources.onnx_pooling import EMBEDDING, STATES, gives_states, pooled, sentence_beside
from coda_compile.sources.sentence import Sentence
from coda_models.backbone import load_tokenizer
from coda_ops import DOMAIN
from coda_ops.errors import CodaError, first_line, shown
from coda_ops.foreign_json import read_json
from coda_targets import get_runtime
from coda_targets.manifest import LogitsInfo
from coda_targets.modalities.text import text_signature
from coda_targets.runtimes import DEFAULT_TARGET
from coda_targets.runtimes.session import open_session, run_session
from coda_targets.signature import Arrays, Signature
from coda_targets.weights import find_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG = "config.json"
CLASSES = "logits"  # an output's name says what a model is for
_QUANTISED = ("INT8", "UINT8", "INT4", "UINT4")
_CLASSIFIERS = tuple(head for head, task in TASK_OF_HEAD.items() if task.endswith("classification"))
_QUIET = {"log_severity_level": 4}  # how many tokens there may be is found by asking for too many
_LONGEST = 512  # tokens, where neither tokenizer nor configuration says how many there may be
_ANY_LENGTH = 1 << 20  # tokenizers that know no limit say a number without meaning


@dataclass(frozen=True)
class Graph:
    """An ONNX file with what lies beside it.

    Attributes:
        path: of the file.
        beside: the folder of what belongs to it.
        model: what stands in it.
        task: as in ``CodaConfig``.
        signature: what it takes.
        labels: in order of the logits; empty where it classifies nothing.
        logits: what they mean, as the config.json beside it says.
        config: of the config.json beside it, empty where there is none.
        tokenizer: beside it.
        run: see ``original``; gives the embedding, too, where the graph gives states alone.
        sentence: what becomes of states, where the graph gives states alone.
    """

    path: Path
    beside: Path
    model: ir.Model
    task: str
    signature: Signature
    labels: tuple[str, ...]
    logits: LogitsInfo | None
    config: dict[str, Any]
    tokenizer: "PreTrainedTokenizerBase | None"
    run: Callable[[Arrays], Arrays]
    sentence: Sentence | None


def read(path: Path) -> Graph:
    """Read an ONNX file, weights beside it included, and find out what it takes and gives.

    Raises:
        CompileError: damaged, no text encoder, of fixed shapes, not float32, or one that this compiler made.
        CodaError: a tokenizer or configuration beside it that cannot be read.
    """
    model = _load(path)
    signature = _check_inputs(model, path)
    _check_weights(model, path)
    beside = _beside(path)
    config, tokenizer = _config(beside), load_tokenizer(beside)
    vocabulary = _vocabulary(model, signature, config, path)
    padding = _padding(model, signature, config, tokenizer, vocabulary, path)
    _name_classes(model, config)
    run, sentence = original(path, model), None

    def declared(longest: int, types: int) -> Signature:
        whole = text_signature(vocabulary, longest, padding=padding, types=types)
        return whole.select(signature.names)

    longest = _longest(run, declared(_ANY_LENGTH, 1), _allowed(config, tokenizer), path)
    signature = declared(longest, _types(run, declared(longest, 1)))
    some = signature.random(2, min(3, longest), ragged=True)
    example = run(some)
    for value in model.graph.outputs:
        if value.shape is None:
            *outer, width = example[str(value.name)].shape
            value.shape = ir.Shape([*signature.lead.axes[: len(outer)], width])
    if gives_states(model, example):
        sentence = sentence_beside(beside)
        run = pooled(run, sentence)
        example = run(some)
        signature = sentence.truncation.shortened(signature, tokenizer)
    task, labels = _task(model, example, config, path, beside)
    logits = logits_info(task, config, len(labels), beside / _CONFIG)
    return Graph(path, beside, model, task, signature, labels, logits, config, tokenizer, run, sentence)


def original(path: Path, model: ir.Model, *, features: str | None = None) -> Callable[[Arrays], Arrays]:
    """A function that runs a file as it was written: on a CPU, in one thread, nothing optimised.

    Args:
        model: names the outputs.
        features: a value inside the graph that becomes an output as well.

    Raises:
        CompileError: onnxruntime cannot load the file. The function raises ``InputError`` where it cannot run.
    """
    runtime = replace(get_runtime(DEFAULT_TARGET), kernels="", graph_level="disable", session_options=_QUIET)
    names = [str(value.name) for value in model.graph.outputs]
    proto = onnx.load(str(path), load_external_data=False)
    weights = find_weights(proto, path.parent)
    content: Path | bytes = path if weights is None else b""
    if features is not None and features not in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, None))
        content, names = b"", [*names, features]
    try:
        session = open_session(content or proto.SerializeToString(), runtime, threads=1, weights=weights)
    except CodaError as error:
        raise CompileError(f"{path} is no model that onnxruntime can run: {error}") from None
    stored = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, run_session(session, stored, inputs), strict=True))


def _load(path: Path) -> ir.Model:
    try:
        proto = onnx.load(str(path), load_external_data=False)
        weights = find_weights(proto, path.parent)
        if weights is not None:
            _check_links(weights, path)
            onnx.load_external_data_for_model(proto, str(weights))
        model = ir.from_proto(proto)
        for value in model.graph.initializers.values():
            if value.const_value is not None:
                value.const_value.numpy()  # which fails where bytes are shorter than the shape says
    except CompileError:
        raise
    except Exception as error:  # protobuf's, onnx_ir's and the file system's share no base class
        raise CompileError(
            f"{path} is no ONNX file, is cut off, or lacks the weights that belong beside it: {first_line(error)}"
        ) from None
    if not proto.graph.node:
        raise CompileError(f"{path} is no ONNX file or is cut off: it has no graph")
    if any(node.domain == DOMAIN for graph in (proto.graph, *proto.functions) for node in graph.node):
        raise CompileError(f"{path} is compiled already: give the model that it was made from")
    if not model.graph.outputs or not all(one.name for one in (*model.graph.inputs, *model.graph.outputs)):
        raise CompileError(f"{path} has no outputs, or such without a name: export it again")
    return model


def _check_links(weights: Path, path: Path) -> None:
    """Refuse weights that are links out of a file's folder, but for those that the hub's cache is made of."""
    home = path.parent.resolve()
    in_cache = weights.name == "blobs" and home.is_relative_to(weights.parent / "snapshots")
    if weights != home and not in_cache:
        raise CompileError(f"{path} has weights that are links out of its folder: copy them there instead")


def _check_inputs(model: ir.Model, path: Path) -> Signature:
    """The inputs in the graph's order, sizes and lengths yet unknown; gives axes the names that people read."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    names = tuple(str(value.name) for value in inputs)
    required, whole = text_signature(1, 1), text_signature(1, 1, types=1)
    strange = [name for name in names if name not in whole.names]
    absent = [name for name in required.names if name not in names]
    if strange or absent:
        what = f"takes {strange[0]!r}" if strange else f"takes no {absent[0]!r}"
        optional = ", ".join(whole.names[len(required.names) :])
        raise CompileError(f"{path} {what}: a text encoder takes {', '.join(required.names)} and may take {optional}")
    signature = whole.select(names)
    for value, one in zip(inputs, signature.inputs, strict=True):
        if value.dtype is None or value.dtype.numpy() != one.dtype:
            kind = "unknown" if value.dtype is None else value.dtype.name.lower()
            raise CompileError(f"{path} takes {value.name} as {kind}: export it with inputs of {one.dtype}")
        dynamic = value.shape is not None and not any(isinstance(size, int) for size in value.shape)
        if not dynamic or len(value.shape or ()) != len(one.axes):
            raise CompileError(
                f"{path} fixes the shape of {value.name}: export it with dynamic {' and '.join(map(str, one.axes))}"
            )
        value.shape = ir.Shape(one.axes)
    axes = signature.lead.axes
    for value in model.graph.outputs:
        if value.shape is not None:
            named = [
                axes[i] if isinstance(size, ir.SymbolicDim) and i < len(axes) else size
                for i, size in enumerate(value.shape)
            ]
            value.shape = ir.Shape(named)
    return signature


def _check_weights(model: ir.Model, path: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.dtype.name in _QUANTISED and len(tensor.shape) > 1:
            raise CompileError(
                f"{path} holds {name!r} in {tensor.dtype.name.lower()}, so it is quantised already: give the file in "
                "float32 that it was made from"
            )
        if not tensor.dtype.is_floating_point():
            continue
        if tensor.dtype != ir.DataType.FLOAT and len(tensor.shape) > 1:
            raise CompileError(f"{path} holds {name!r} in {tensor.dtype.name.lower()}: export it in float32")
        array = tensor.numpy()
        if np.isnan(array).any() or (array.ndim > 1 and np.isinf(array).any()):
            raise CompileError(f"{path} holds NaN or infinite weights in {name!r}: training diverged, train it again")


def _beside(path: Path) -> Path:
    """The folder of what belongs to a file: its own or, of the layout ``onnx/model.onnx``, the one around that."""
    folder = path.parent
    around = folder.absolute().parent
    in_layout = folder.absolute().name == ONNX_FOLDER and not (folder / _CONFIG).is_file()
    return around if in_layout and (around / _CONFIG).is_file() else folder


def _config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        return {}
    plain = read_json(path, dict, "it should be a Hugging Face configuration", CompileError)
    return plain | cross_encoder_keys(folder, plain)


def _compared(model: ir.Model, signature: Signature) -> int:
    """The token id that ids are compared with, as RoBERTa's are to number the positions of all but padding; or 0."""
    ids = next(value for value in model.graph.inputs if value.name == signature.lead.name)
    for node, _ in ids.uses():
        numbers = (ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None)
        for number in numbers if node.op_type == "Equal" else ():
            if number is not None and number.size == 1:
                return int(number.numpy().item())
    return 0


def _vocabulary(model: ir.Model, signature: Signature, config: dict[str, Any], path: Path) -> int:
    """How many rows the table has that token ids are looked up in."""
    ids = next(value for value in model.graph.inputs if value.name == signature.lead.name)
    for node, index in ids.uses():
        table = node.inputs[0]
        if (node.op_type, index) == ("Gather", 1) and table is not None and table.shape is not None:
            rows = table.shape[0]
            if len(table.shape) == 2 and isinstance(rows, int) and rows > 0:
                return rows
    said = config.get("vocab_size")
    if isinstance(said, int) and said > 1:
        return said
    raise CompileError(f"{path} does not say how many tokens it knows: put the model's config.json beside it")


def _padding(
    model: ir.Model,
    signature: Signature,
    config: dict[str, Any],
    tokenizer: "PreTrainedTokenizerBase | None",
    vocabulary: int,
    path: Path,
) -> int:
    """The token id that stands where nothing is valid."""
    said = config.get("pad_token_id", None if tokenizer is None else tokenizer.pad_token_id)
    if said is None:
        said = _compared(model, signature)
    if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said < vocabulary:
        raise CompileError(
            f"{path} knows {vocabulary} tokens, and {shown(said)} is to be its padding: put the model's own "
            f"pad_token_id into {_CONFIG}"
        )
    return said


def _name_classes(model: ir.Model, config: dict[str, Any]) -> None:
    """Call a classifier's only output ``logits``, for exporters that number values."""
    (first, *others), classes = model.graph.outputs, config.get("architectures")
    named = isinstance(classes, list) and any(str(name).endswith(_CLASSIFIERS) for name in classes)
    if named and not others and first.name != CLASSES:
        first.name = CLASSES


def _allowed(config: dict[str, Any], tokenizer: "PreTrainedTokenizerBase | None") -> int:
    """How many tokens there may be, as far as what lies beside a graph says."""
    said = [config.get("max_position_embeddings"), None if tokenizer is None else tokenizer.model_max_length]
    return min((one for one in said if isinstance(one, int) and 0 < one < _ANY_LENGTH), default=_LONGEST)


def _longest(run: Callable[[Arrays], Arrays], signature: Signature, allowed: int, path: Path) -> int:
    """The most tokens, up to so many, that the graph runs on: some positions belong to no token."""

    def runs(tokens: int) -> bool:
        try:
            run(signature.random(1, tokens))
        except CodaError:
            return False
        return True

    if not runs(1):
        raise CompileError(f"{path} does not run on a text of one token: export it with dynamic batch and sequence")
    low, high = 1, allowed + 1  # runs, and is one too many
    if runs(allowed):
        return allowed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


def _types(run: Callable[[Arrays], Arrays], signature: Signature) -> int:
    """How many token types the graph runs on, of the two that tokenizers write."""
    types = signature.role("types")
    if types is None:
        return 1
    arrays = signature.random(1, 1)
    try:
        run({**arrays, types.name: np.ones_like(arrays[types.name])})
    except CodaError:
        return 1
    return 2


def _task(
    model: ir.Model, example: Arrays, config: dict[str, Any], path: Path, beside: Path
) -> tuple[str, tuple[str, ...]]:
    """What a graph is for, by its outputs, and its labels."""
    for value in model.graph.outputs:
        if value.dtype != ir.DataType.FLOAT:
            raise CompileError(f"{path} gives {value.name} in another type than float32: export it in float32")
    names = [str(value.name) for value in model.graph.outputs]
    if EMBEDDING in example:
        return "feature-extraction", ()
    if CLASSES not in names:
        raise CompileError(
            f"{path} gives {', '.join(names)}: name its outputs when it is exported, {CLASSES} where it classifies, "
            f"{EMBEDDING} where it stands for texts and {STATES} where it stands for tokens"
        )
    logits = example[CLASSES]
    task = {2: "sequence-classification", 3: "token-classification"}.get(logits.ndim)
    if task is None:
        raise CompileError(f"{path} gives {CLASSES} of {logits.ndim} axes: a classifier's have two, a tagger's three")
    named = config.get("id2label")
    if named is None:
        return task, tuple(f"LABEL_{i}" for i in range(logits.shape[-1]))
    return task, class_names(named, logits.shape[-1], beside / _CONFIG)
