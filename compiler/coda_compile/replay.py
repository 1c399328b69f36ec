"""Torch's side of verification: what a model computes from the decisions of the compiled one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coda_compile.cases import Case
from coda_compile.export import output_names
from coda_compile.parity import Comparison
from coda_compile.quantize import Int4Linear, Int8Linear, Int8StaticLinear
from coda_models.model import CodaModel, CodaOutput
from coda_targets.bundle import Arrays
from coda_targets.routing import Decision

_OFF = 2.0  # times as far from float64 as torch's float32 may a compiled model be


@contextmanager
def one_thread() -> Iterator[None]:
    """Sum in one order, however many cores there are: what is measured here is written into the bundle."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def outputs_of(model: CodaModel, output: CodaOutput) -> Arrays:
    """Output arrays by name."""
    return {name: getattr(output, name).numpy() for name in output_names(model)}


@dataclass(frozen=True)
class Replayed:
    """What torch computes from the compiled model's decisions.

    Attributes:
        outputs: by name.
        scores: [batch, tokens] by routed layer.
        more: how far outputs, by name, and "scores of layer N" may be off where that exceeds the tolerance.
    """

    outputs: Arrays
    scores: dict[int, NDArray[Any]]
    more: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: CodaModel, case: Case, decisions: list[Decision], comparison: Comparison) -> "Replayed":
        """In the model's own floats."""
        for decision in decisions:  # torch could not follow a malformed one
            comparison.well_formed(decision)
        return cls(*replay(model, case, decisions))

    def in_float64(self, model: CodaModel, case: Case, decisions: list[Decision]) -> "Replayed | None":
        """In float64, where torch's float32 itself is off by more than nothing; ``None`` of models in eight bits or
        fewer, whose products are replayed as they are.
        """
        if any(isinstance(module, Int8Linear | Int8StaticLinear | Int4Linear) for module in model.modules()):
            return None
        outputs, scores = replay(deepcopy(model).double(), case, decisions)
        mask = case.inputs["attention_mask"] != 0
        more = {f"scores of layer {i}": np.abs(self.scores[i] - wide)[mask].max() for i, wide in scores.items()}
        for name, wide in outputs.items():
            off = np.abs(self.outputs[name] - wide)
            more[name] = (off[mask] if off.ndim == 3 else off).max()
        return Replayed(outputs, scores, {name: _OFF * float(value) for name, value in more.items()})


@one_thread()
@torch.inference_mode()
def replay(model: CodaModel, case: Case, decisions: list[Decision]) -> tuple[Arrays, dict[int, NDArray[Any]]]:
    """Outputs, and scores by layer."""
    by_layer = {decision.layer: decision for decision in decisions}
    replayed = [
        (tensor_of(by_layer[i].indices), tensor_of(by_layer[i].gates), tensor_of(by_layer[i].used))
        if i in by_layer
        else None
        for i in range(len(model.layers))
    ]
    inputs = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    output = model(**inputs, output_routing=True, decisions=replayed)
    scores = {i: routing.scores.numpy() for i, routing in enumerate(output.routing) if routing is not None}
    return outputs_of(model, output), scores


@contextmanager
def replayed_products(
    model: CodaModel,
    products: Arrays,
    comparison: Comparison,
    valid: NDArray[np.bool_],
    used: Mapping[int, NDArray[np.bool_]],
) -> Iterator[None]:
    """Have torch multiply in eight bits what the compiled model multiplied, after comparing it with its own.

    The last bit of an activation may decide between two levels; left alone, such a difference would grow from layer to
    layer until it hides what is really wrong. Where the compiled model was trimmed to the first token, or packed, the
    other tokens stay torch's own. Padding is replayed and not compared: nothing that counts depends on it, and packed
    models hold other numbers there.

    Args:
        products: what was multiplied, [batch, tokens, inputs], or [rows, inputs] where it was packed.
        valid: [batch, tokens], the tokens that are no padding.
        used: [batch, K] by layer, the slots that hold a token.
    """

    def replay(name: str, masks: list[NDArray[np.bool_]]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            own, actual = inputs[0], tensor_of(products[f"model.{name}.weight"])
            counts = tensor_of(next(mask for mask in masks if mask.shape == own.shape[:2]))
            kept = counts.clone() if actual.ndim == 2 else torch.ones_like(counts)
            if actual.ndim == 3 and actual.shape[1] == 1:
                kept[:, 1:] = False  # trimmed to the first token
            whole = actual.ndim == 3 and actual.shape[:2] == own.shape[:2]
            rows, replayed = actual[kept] if whole else actual.flatten(0, -2), own.clone()
            if own[kept].shape != rows.shape:
                comparison.product(name, own.numpy(), actual.numpy())  # fails, and says how
            replayed[kept] = rows
            comparison.product(name, own.numpy(), torch.where(counts.unsqueeze(-1), replayed, own).numpy())
            return (replayed,)

        return hook

    def hooked(i: int, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return replay(f"layers.{i}.{name}", [*([used[i]] if i in used else []), valid])

    hooks = [
        module.register_forward_pre_hook(hooked(i, name))
        for i, layer in enumerate(model.coda_layers())
        for name, module in layer.named_modules()
        if isinstance(module, Int8Linear | Int8StaticLinear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A copy as a tensor."""
    return torch.from_numpy(np.array(array))
