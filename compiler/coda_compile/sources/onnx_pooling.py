"""Graphs that give the states of tokens and no embedding: pooled as files beside them say, or else by the mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from coda_compile.sources.sentence import Sentence, read_sentence
from coda_models.errors import UnsupportedModelError
from coda_targets.modalities.text import MASK
from coda_targets.signature import Arrays

STATES, EMBEDDING = "last_hidden_state", "sentence_embedding"
_KINDS = ("mean", "first")
_UNIT = "Normalize"  # the only module that is added behind one
_LEAST = 1e-12  # length that torch divides by


def gives_states(model: ir.Model, example: Arrays) -> bool:
    """Whether states are all that a graph gives.

    Args:
        example: of its outputs.
    """
    return [value.name for value in model.graph.outputs] == [STATES] and example[STATES].ndim == 3


def sentence_beside(folder: Path) -> Sentence:
    """What becomes of a graph's states.

    Raises:
        UnsupportedModelError: more than one of ``_KINDS`` of pooling, to unit length or not.
        CompileError: a damaged file.
    """
    sentence = read_sentence(folder)
    steps = (*sentence.pooling, *(module.kind for module in sentence.modules))
    if steps[0] not in _KINDS or not {_UNIT}.issuperset(steps[1:]):
        raise UnsupportedModelError(
            f"{folder} makes an embedding of states by {', '.join(steps)}, and {' or '.join(_KINDS)} with or without "
            f"{_UNIT} is what can be added to an ONNX file: give what it was exported from, or a file with {EMBEDDING}"
        )
    return sentence


def pooled(run: Callable[[Arrays], Arrays], sentence: Sentence) -> Callable[[Arrays], Arrays]:
    """A function that gives the embedding as well.

    Args:
        run: gives states. [batch, tokens, width]
        sentence: of ``sentence_beside``.
    """

    def give(inputs: Arrays) -> Arrays:
        outputs, mask = run(inputs), inputs[MASK]
        states = outputs[STATES]
        if sentence.pooling == ("first",):
            embedding = states[np.arange(len(states)), mask.argmax(1)]
        else:
            embedding = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        if sentence.modules:
            embedding = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), _LEAST)
        return {**outputs, EMBEDDING: embedding.astype(np.float32)}

    return give


def append(model: ir.Model, sentence: Sentence) -> None:
    """Have a graph of opset 18 or newer give the embedding, too. [batch, width]"""
    graph = model.graph
    states = next(value for value in graph.outputs if value.name == STATES)
    mask = next(value for value in graph.inputs if value.name == MASK)
    tape = ir.tape.Tape()

    def constant(name: str, array: NDArray[Any]) -> ir.Value:
        value = tape.initializer(ir.tensor(array, name=f"{EMBEDDING}.{name}"))
        graph.register_initializer(value)
        return value

    axis = constant("axis", np.array([1]))
    if sentence.pooling == ("first",):
        whole = tape.op("Cast", [mask], {"to": ir.DataType.INT32})
        place = tape.op("ArgMax", [whole], {"axis": 1})  # [batch, 1]
        embedding = tape.op("GatherND", [states, place], {"batch_dims": 1})
    else:
        weights = tape.op("Cast", [mask], {"to": ir.DataType.FLOAT})
        total = tape.op("MatMul", [tape.op("Unsqueeze", [weights, axis]), states])  # [batch, 1, width]
        embedding = tape.op("Div", [tape.op("Squeeze", [total, axis]), tape.op("ReduceSum", [weights, axis])])
    if sentence.modules:
        length = tape.op(
            "Max", [tape.op("ReduceL2", [embedding, axis]), constant("least", np.array([_LEAST], np.float32))]
        )
        embedding = tape.op("Div", [embedding, length])
    graph.extend(tape.nodes)
    embedding.name, embedding.dtype = EMBEDDING, ir.DataType.FLOAT
    width = None if states.shape is None else states.shape[-1]
    embedding.shape = ir.Shape([None if mask.shape is None else mask.shape[0], width])
    graph.outputs.append(embedding)
