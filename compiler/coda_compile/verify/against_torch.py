"""Verify a compiled model against torch, on shapes that the export never saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coda_compile.backends.openvino_rounding import as_run, as_written, multiplying
from coda_compile.errors import VerificationError
from coda_compile.lowering import verified_on
from coda_compile.verify.cases import Case, Inputs, cases, kept_case
from coda_compile.verify.first_token import through_first
from coda_compile.verify.parity import CaseParity, Comparison, Tolerances
from coda_compile.verify.replay import (
    TIMES,
    Replayed,
    in_float64,
    one_thread,
    outputs_of,
    referee,
    replay,
    replayed_products,
    tensor_of,
)
from coda_models.model import CodaModel
from coda_ops.route import route, soft_top_k
from coda_targets import Target
from coda_targets.bundle import Arrays, open_session, run_session
from coda_targets.errors import InputError
from coda_targets.routing import Decision, RoutingProbe
from coda_targets.task_adapters import Adapter


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
    given = Inputs.of(model)
    probe = RoutingProbe(path, target, threads=1, products=True)
    compared = _Compared(model, target, tolerances or Tolerances(), adapter, on_failure)
    with multiplying(model, as_run(target, model)):
        results = [compared.case(probe, case) for case in cases(given)]
        case = kept_case(given)
        if routed := reference(model, case)[1]:
            del probe
            decided = RoutingProbe(path, target, threads=1, products=True, decided=True)
            first = Case(f"{case.name}, the first token routed in every layer", case.inputs)
            results.append(compared.case(decided, first, through_first(routed, first.inputs["attention_mask"] != 0)))
    return results


@dataclass
class _Compared:
    """What compares one case after the other."""

    model: CodaModel
    target: Target
    tolerances: Tolerances
    adapter: Adapter | None
    on_failure: Callable[[Case, Arrays, Arrays], None]

    @cached_property
    def _wide(self) -> CodaModel | None:
        return in_float64(self.model)

    @cached_property
    def _broad(self) -> dict[str, float]:
        """How far torch's float32 is from float64 over many tokens."""
        case = max(cases(Inputs.of(self.model)), key=lambda one: one.inputs["attention_mask"].sum())
        _, decisions = reference(self.model, case)
        assert self._wide is not None
        narrow, wide = (Replayed(*replay(one, case, decisions)) for one in (self.model, self._wide))
        return narrow.distance(wide, case.inputs["attention_mask"] != 0)

    def case(self, probe: RoutingProbe, case: Case, decided: Sequence[Decision] = ()) -> CaseParity:
        """Run one input on both sides, and compare.

        Args:
            decided: what both sides are given, in the place of their own decisions.
        """
        expected: Arrays = {}
        outputs: Arrays = {}
        mask = case.inputs["attention_mask"] != 0
        try:
            outputs, decisions = probe.run(case.inputs, self.adapter, decided)
            comparison = Comparison(case.name, mask, self.tolerances, replayed=True)
            used = {decision.layer: decision.used for decision in decisions}
            with replayed_products(self.model, probe.products, comparison, mask, used):
                replayed = Replayed.of(self.model, case, decisions, comparison)
            expected = replayed.outputs
            if self.model.ood is not None:
                comparison.flags(outputs, self.model.ood.threshold)
            try:
                return self._compare(comparison, replayed, decisions, outputs, mask, chosen=not decided)
            except VerificationError:
                if self._wide is None:
                    raise
                exact = referee(self.model, self._wide, case, decisions, self._broad)
                comparison = Comparison(case.name, mask, self.tolerances, replayed=True)
                comparison.result.float64, expected = True, exact.outputs
                return self._compare(comparison, exact, decisions, outputs, mask, chosen=not decided)
        except Exception as error:
            self.on_failure(case, expected, outputs)
            if isinstance(error, InputError):  # a valid input, so the model is what cannot run
                raise VerificationError(f"verification failed on input '{case.name}': {error}") from None
            raise

    def _compare(
        self,
        comparison: Comparison,
        replayed: Replayed,
        decisions: list[Decision],
        outputs: Arrays,
        mask: NDArray[np.bool_],
        *,
        chosen: bool,
    ) -> CaseParity:
        """Hold decisions and outputs against torch's.

        Args:
            chosen: whether the model chose for itself.
        """
        by_layer = {decision.layer: decision for decision in decisions}
        for i, layer in enumerate(self.model.coda_layers()):
            if i not in by_layer:
                continue
            actual, scores = by_layer[i], replayed.scores[i]
            more = replayed.more.get(f"scores of layer {i}", 0.0)
            if not chosen:
                comparison.scores(scores, actual, more=more)
                continue
            valid = tensor_of(mask)
            indices, _, used = route(tensor_of(scores), valid, layer.reduction, layer.schedule)
            selected = [row[kept].tolist() for row, kept in zip(indices, used, strict=True)]
            comparison.layer(scores, selected, actual, more=more)
            gates = soft_top_k(tensor_of(actual.scores), valid, layer.reduction, layer.schedule)
            gates = gates.gather(1, tensor_of(actual.indices)) * tensor_of(actual.used)
            final = layer.schedule.final
            more = 0.0 if self.target.wide_floats else _float32_gates(actual.scores[mask], final)
            comparison.gates(gates.numpy(), actual, more=more)
        return comparison.outputs(replayed.outputs, outputs, more=replayed.more)


def expected(
    model: CodaModel, path: Path, case: Case, target: Target, adapter: Adapter | None = None
) -> tuple[Arrays, list[Decision], Arrays]:
    """What a target should compute of one input, wherever it runs: what the file says, no rounding of its own.

    Args:
        path, adapter: see ``verify``.

    Returns:
        Outputs, decisions, and the outputs where the first token is routed in every layer; none where no layer routes.
    """
    with multiplying(model, as_written(target)):
        outputs, decisions = reference(model, case)
        first = through_first(decisions, case.inputs["attention_mask"] != 0)
        routed = replay(model, case, first)[0] if decisions else {}
    return _with_own_padding(outputs, path, case, target, adapter), decisions, routed


def elsewhere(model: CodaModel, case: Case, parity: Sequence[CaseParity], usual: Tolerances) -> Tolerances:
    """How far another machine's answers to one input may be from torch's, where nobody replays decisions.

    Args:
        parity: of the same model; where float64 had to decide, what float32 loses on this input is allowed.
        usual: of the model's precision.
    """
    if not any(one.float64 for one in parity):
        return usual
    wide = in_float64(model)
    assert wide is not None
    (outputs, decisions), (exact, others) = reference(model, case), reference(wide, case)
    mask, alike = case.inputs["attention_mask"] != 0, np.ones(len(case.inputs["attention_mask"]), bool)
    scores = 0.0
    for one, other in zip(decisions, others, strict=True):
        scores = max(scores, float(np.abs(one.scores - other.scores)[mask & alike[:, None]].max(initial=0.0)))
        alike &= (one.indices == other.indices).all(1)
    compared = {name: mask & alike[:, None] if array.ndim == 3 else alike for name, array in outputs.items()}
    off = max(float(np.abs(outputs[name] - exact[name])[at].max(initial=0.0)) for name, at in compared.items())
    return replace(usual, scores=max(usual.scores, TIMES * scores), outputs=max(usual.outputs, TIMES * off))


def _with_own_padding(outputs: Arrays, path: Path, case: Case, target: Target, adapter: Adapter | None) -> Arrays:
    """Outputs that have one a token, with what the compiled model itself gives for padding.

    Nothing that counts depends on it, and packed models hold other numbers there than torch; but ONNX's own runner
    compares it.
    """
    mask = case.inputs["attention_mask"] != 0
    names = [name for name, array in outputs.items() if array.ndim == 3]
    if not names or mask.all():
        return outputs
    own = run_session(open_session(path, verified_on(target), threads=1), names, case.inputs, adapter)
    filled = {name: np.where(mask[..., None], outputs[name], at) for name, at in zip(names, own, strict=True)}
    return outputs | filled


@one_thread()
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
    return outputs_of(model, output), decisions


def _float32_gates(scores: NDArray[np.float32], epsilon: float) -> float:
    """How far gates may be off where their iteration runs in float32: four roundings of the widest score, over ε.

    Measured: 3.9e-6 in OpenVINO, over 512 tokens whose scores span 2 at ε = 0.03, where this allows 1.6e-5.
    """
    return 4 * 2.0**-24 * float(np.ptp(scores)) / epsilon
