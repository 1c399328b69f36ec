"""torch's side of verification: replay the compiled model's routing decisions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coda_compile.export import output_names
from coda_compile.precision.layers.linear import QuantisedLinear
from coda_compile.threads import one_thread
from coda_compile.verify.cases import Case
from coda_compile.verify.parity import Comparison
from coda_models.model import CodaModel, CodaOutput
from coda_targets.bundle import Arrays
from coda_targets.routing import Decision, valid_in_layers

TIMES = 4.0  # as far from float64 as torch's float32 may a compiled model be


def inputs_of(model: CodaModel, case: Case) -> dict[str, Tensor]:
    """Input tensors by name; numbers, as features are, come in the model's own floats."""
    floats = next(model.parameters()).dtype
    tensors = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    return {name: x.to(floats) if x.is_floating_point() else x for name, x in tensors.items()}


def valid_tokens(model: CodaModel, case: Case) -> NDArray[np.bool_]:
    """Where tokens are no padding, learned ones in front among them. [batch, tokens]"""
    return valid_in_layers(model.signature.mask(case.inputs), model.prompt_tokens)


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

    def distance(self, wide: "Replayed", mask: NDArray[np.bool_]) -> dict[str, float]:
        """The largest difference of everything that is compared, of valid tokens alone."""
        far = {f"scores of layer {i}": np.abs(self.scores[i] - scores)[mask].max() for i, scores in wide.scores.items()}
        for name, array in wide.outputs.items():
            off = np.abs(self.outputs[name] - array)
            far[name] = (off[mask] if off.ndim == 3 else off).max()
        return {name: float(value) for name, value in far.items()}


def in_float64(model: CodaModel) -> CodaModel | None:
    """A copy; ``None`` of models that quantise activations, which are replayed as they are."""
    if any(_quantises(module) for module in model.modules()):
        return None
    return deepcopy(model).double()


def referee(
    model: CodaModel, wide: CodaModel, case: Case, decisions: list[Decision], broad: Mapping[str, float]
) -> Replayed:
    """What float64 computes, and how far from it a model may be: some times as far as torch's own float32 is.

    Args:
        wide: the model in float64.
        broad: see ``Replayed.distance``; of many tokens, as a few may be right by luck.
    """
    exact = Replayed(*replay(wide, case, decisions))
    own = Replayed(*replay(model, case, decisions)).distance(exact, valid_tokens(model, case))
    return replace(exact, more={name: TIMES * max(value, broad[name]) for name, value in own.items()})


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
    output = model(**inputs_of(model, case), output_routing=True, decisions=replayed)
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
    """Have torch quantise what the compiled model quantised, after comparing it with its own.

    The last bit of an activation may decide between two integers; left alone, such a difference would grow from layer
    to layer until it hides what is really wrong. Where the compiled model was trimmed to the first token, or packed,
    the other tokens stay torch's own. Padding is replayed and not compared: nothing that counts depends on it, and
    packed models hold other numbers there.

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
            if actual.ndim == 2 and len(masks) == 1:
                kept[:, 0] = True  # dense layers keep the first token, padding or not
            if actual.ndim == 3 and actual.shape[1] == 1:
                kept[:, 1:] = False  # trimmed to the first token
            whole = actual.ndim == 3 and actual.shape[:2] == own.shape[:2]
            rows, replayed = actual[kept] if whole else actual.flatten(0, -2), own.clone()
            if own[kept].shape != rows.shape:
                comparison.quantised_input(name, own.numpy(), actual.numpy())  # fails, and says how
            replayed[kept] = rows
            comparison.quantised_input(name, own.numpy(), torch.where(counts.unsqueeze(-1), replayed, own).numpy())
            return (replayed,)

        return hook

    def hooked(i: int, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return replay(f"layers.{i}.{name}", [*([used[i]] if i in used else []), valid])

    hooks = [
        module.register_forward_pre_hook(hooked(i, name))
        for i, layer in enumerate(model.coda_layers())
        for name, module in layer.named_modules()
        if _quantises(module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _quantises(module: nn.Module) -> bool:
    return isinstance(module, QuantisedLinear) and module.quantises_input


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A copy as a tensor."""
    return torch.from_numpy(np.array(array))
