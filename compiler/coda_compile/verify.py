"""Verify a compiled model against torch, on shapes that the export never saw."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coda_compile.cases import Case, Inputs, cases
from coda_compile.errors import VerificationError
from coda_compile.export import output_names
from coda_compile.parity import CaseParity, Comparison, Tolerances
from coda_compile.quantize import Int8Linear, Int8StaticLinear
from coda_compile.rounding import as_run, as_written, multiplying
from coda_models.model import CodaModel, CodaOutput
from coda_ops.route import route, soft_top_k
from coda_targets import Target
from coda_targets.adapters import Adapter
from coda_targets.bundle import Arrays
from coda_targets.errors import InputError
from coda_targets.routing import Decision, RoutingProbe


def verify(
    model: CodaModel,
    path: Path,
    target: Target,
    *,
    tolerances: Tolerances | None = None,
    adapter: Adapter | None = None,
    on_failure: Callable[[Case, Arrays, Arrays], None] = lambda case, expected, actual: None,
) -> list[CaseParity]:
    """Run every case through torch and through onnxruntime, and compare them tie-aware.

    The torch reference replays the compiled model's decisions, so that everything behind one still compares tightly:
    selections, each of which must be its own choice up to a tie, and gates, each of which must follow from its score. A
    gate changes 1 / ε times as much as its score, so that rounding would grow from layer to layer.

    Args:
        path: the ONNX file.
        adapter: what the model trained, where the file holds another task.
        on_failure: called with the case and both sides' outputs before the error is raised.

    Raises:
        VerificationError: which output, layer and input.
    """
    probe = RoutingProbe(path, target, threads=1, products=True)
    with multiplying(model, as_run(target, model)):
        return _compare(probe, model, target, tolerances or Tolerances(), adapter, on_failure)


def _compare(
    probe: RoutingProbe,
    model: CodaModel,
    target: Target,
    tolerances: Tolerances,
    adapter: Adapter | None,
    on_failure: Callable[[Case, Arrays, Arrays], None],
) -> list[CaseParity]:
    results = []
    for case in cases(Inputs.of(model)):
        expected: Arrays = {}
        outputs: Arrays = {}
        try:
            outputs, decisions = probe.run(case.inputs, adapter)
            comparison = Comparison(case.name, case.inputs["attention_mask"].astype(bool), tolerances, replayed=True)
            used = {decision.layer: decision.used for decision in decisions}
            with _replayed_products(model, probe.products, comparison, case.inputs["attention_mask"] != 0, used):
                expected = _replay(model, case, decisions, comparison, wide=target.wide_floats)
            if model.ood is not None:
                comparison.flags(outputs, model.ood.threshold)
            results.append(comparison.outputs(expected, outputs))
        except Exception as error:
            on_failure(case, expected, outputs)
            if isinstance(error, InputError):  # a valid input, so the model is what cannot run
                raise VerificationError(f"verification failed on input '{case.name}': {error}") from None
            raise
    return results


@contextmanager
def _replayed_products(
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
            own, actual = inputs[0], _tensor(products[f"model.{name}.weight"])
            counts = _tensor(next(mask for mask in masks if mask.shape == own.shape[:2]))
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sum in one order, however many cores there are: what is measured here is written into the bundle."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def expected(model: CodaModel, case: Case, target: Target) -> tuple[Arrays, list[Decision]]:
    """What a target should compute of one input, wherever it runs: what the file says, no rounding of its own."""
    with multiplying(model, as_written(target)):
        return reference(model, case)


@_one_thread()
@torch.inference_mode()
def reference(model: CodaModel, case: Case) -> tuple[Arrays, list[Decision]]:
    """Torch's own outputs and decisions for one input."""
    inputs = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    output = model(**inputs, output_routing=True)
    decisions = [
        Decision(i, *(tensor.numpy() for tensor in routing))
        for i, routing in enumerate(output.routing)
        if routing is not None
    ]
    return _outputs(model, output), decisions


def _outputs(model: CodaModel, output: CodaOutput) -> Arrays:
    return {name: getattr(output, name).numpy() for name in output_names(model)}


@_one_thread()
@torch.inference_mode()
def _replay(model: CodaModel, case: Case, decisions: list[Decision], comparison: Comparison, *, wide: bool) -> Arrays:
    """Torch's outputs with the compiled model's decisions, comparing each layer's on the way."""
    by_layer = {decision.layer: decision for decision in decisions}
    replayed = [
        (_tensor(by_layer[i].indices), _tensor(by_layer[i].gates), _tensor(by_layer[i].used)) if i in by_layer else None
        for i in range(len(model.layers))
    ]
    for decision in decisions:  # torch could not follow a malformed one
        comparison.well_formed(decision)
    inputs = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    output = model(**inputs, output_routing=True, decisions=replayed)
    mask = inputs["attention_mask"].bool()
    for i, layer in enumerate(model.coda_layers()):
        if i not in by_layer:
            continue
        actual, scores = by_layer[i], output.routing[i].scores
        indices, _, used = route(scores, mask, layer.reduction, layer.schedule)
        chosen = [row[valid].tolist() for row, valid in zip(indices, used, strict=True)]
        comparison.layer(scores.numpy(), chosen, actual)
        gates = soft_top_k(_tensor(actual.scores), mask, layer.reduction, layer.schedule)
        more = 0.0 if wide else _float32_gates(actual.scores[case.inputs["attention_mask"] != 0], layer.schedule.final)
        comparison.gates((gates.gather(1, _tensor(actual.indices)) * _tensor(actual.used)).numpy(), actual, more=more)
    return _outputs(model, output)


def _float32_gates(scores: NDArray[np.float32], epsilon: float) -> float:
    """How far gates may be off where their iteration runs in float32: four roundings of the widest score, over ε.

    Measured: 3.9e-6 in OpenVINO, over 512 tokens whose scores span 2 at ε = 0.03, where this allows 1.6e-5.
    """
    return 4 * 2.0**-24 * float(np.ptp(scores)) / epsilon


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))
