"""Verify a compiled model against torch, on shapes that the export never saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coda_compile.backends import Backend
from coda_compile.errors import VerificationError
from coda_compile.threads import one_thread
from coda_compile.verify.cases import Case, cases, kept_case
from coda_compile.verify.first_token import through_first
from coda_compile.verify.linears import computed_as
from coda_compile.verify.parity import CaseParity, Comparison, Tolerances
from coda_compile.verify.replay import (
    TIMES,
    Replayed,
    in_float64,
    inputs_of,
    outputs_of,
    referee,
    replay,
    replayed_products,
    tensor_of,
    valid_tokens,
)
from coda_models.model import CodaModel
from coda_ops.route import route, soft_top_k
from coda_targets.errors import InputError
from coda_targets.routing import Decision, RoutingProbe
from coda_targets.runtimes.session import open_session, run_session
from coda_targets.signature import Arrays
from coda_targets.task_adapters import TaskAdapter


def verify(
    model: CodaModel,
    path: Path,
    backend: Backend,
    *,
    tolerances: Tolerances | None = None,
    adapter: TaskAdapter | None = None,
    on_failure: Callable[[Case, Arrays, Arrays], None] = lambda case, expected, actual: None,
) -> list[CaseParity]:
    """Run every case through torch and through onnxruntime, and compare them tie-aware.

    The torch reference replays the compiled model's decisions, so that everything behind one still compares tightly:
    selections, each of which must be its own choice up to a tie, and gates, each of which must follow from its score. A
    gate changes 1 / ε times as much as its score, so that rounding would grow from layer to layer.

    Args:
        path: the ONNX file.
        backend: that made it, and whose runtime runs it.
        adapter: what the model trained, where the file holds another task.
        on_failure: called with the case and both sides' outputs before the error is raised.

    Raises:
        VerificationError: which output, layer and input.
    """
    signature = model.signature
    probe = RoutingProbe(path, backend.runtime, threads=1, products=True)
    compared = _Compared(model, backend, tolerances or Tolerances(), adapter, on_failure)
    with computed_as(model, backend.linears_as_run(model)):
        results = [compared.case(probe, case) for case in cases(signature)]
        case = kept_case(signature)
        if routed := reference(model, case)[1]:
            del probe
            decided = RoutingProbe(path, backend.runtime, threads=1, products=True, decided=True)
            first = Case(f"{case.name}, the first token routed in every layer", case.inputs)
            results.append(compared.case(decided, first, through_first(routed, valid_tokens(model, first))))
    return results


@dataclass
class _Compared:
    """What compares one case after the other."""

    model: CodaModel
    backend: Backend
    tolerances: Tolerances
    adapter: TaskAdapter | None
    on_failure: Callable[[Case, Arrays, Arrays], None]

    @cached_property
    def _wide(self) -> CodaModel | None:
        return in_float64(self.model)

    @cached_property
    def _broad(self) -> dict[str, float]:
        """How far torch's float32 is from float64 over many tokens."""
        case = max(cases(self.model.signature), key=lambda one: valid_tokens(self.model, one).sum())
        _, decisions = reference(self.model, case)
        assert self._wide is not None
        narrow, wide = (Replayed(*replay(one, case, decisions)) for one in (self.model, self._wide))
        return narrow.distance(wide, valid_tokens(self.model, case))

    def case(self, probe: RoutingProbe, case: Case, decided: Sequence[Decision] = ()) -> CaseParity:
        """Run one input on both sides, and compare.

        Args:
            decided: what both sides are given, in the place of their own decisions.
        """
        expected: Arrays = {}
        outputs: Arrays = {}
        mask = valid_tokens(self.model, case)
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
            more = self.backend.gate_tolerance(actual.scores[mask], layer.schedule.final)
            comparison.gates(gates.numpy(), actual, more=more)
        return comparison.outputs(replayed.outputs, outputs, more=replayed.more)


def expected(
    model: CodaModel, path: Path, case: Case, backend: Backend, adapter: TaskAdapter | None = None
) -> tuple[Arrays, list[Decision], Arrays]:
    """What a target should compute of one input, wherever it runs: what the file says, no rounding of its own.

    Args:
        path, backend, adapter: see ``verify``.

    Returns:
        Outputs, decisions, and the outputs where the first token is routed in every layer; none where no layer routes.
    """
    with computed_as(model, backend.linears_as_written()):
        outputs, decisions = reference(model, case)
        first = through_first(decisions, valid_tokens(model, case))
        routed = replay(model, case, first)[0] if decisions else {}
    mask = valid_tokens(model, case)
    return _with_own_padding(outputs, path, case, mask, backend, adapter), decisions, routed


def elsewhere(model: CodaModel, case: Case, usual: Tolerances) -> Tolerances:
    """How far another machine's answers to one input may be from torch's, where nobody replays decisions.

    What float32 loses on this input is allowed: it may be more than where decisions are replayed, from layer to layer.

    Args:
        usual: of the model's precision, the least.
    """
    wide = in_float64(model)
    if wide is None:
        return usual
    (outputs, decisions), (exact, others) = reference(model, case), reference(wide, case)
    mask = valid_tokens(model, case)
    alike = np.ones(len(mask), bool)
    scores = 0.0
    for one, other in zip(decisions, others, strict=True):
        scores = max(scores, float(np.abs(one.scores - other.scores)[mask & alike[:, None]].max(initial=0.0)))
        alike &= (one.indices == other.indices).all(1)
    numbers = {name: array for name, array in outputs.items() if array.dtype.kind == "f"}  # flags are no amounts
    compared = {name: mask & alike[:, None] if array.ndim == 3 else alike for name, array in numbers.items()}
    off = max(float(np.abs(outputs[name] - exact[name])[at].max(initial=0.0)) for name, at in compared.items())
    return replace(usual, scores=max(usual.scores, TIMES * scores), outputs=max(usual.outputs, TIMES * off))


def _with_own_padding(
    outputs: Arrays, path: Path, case: Case, mask: NDArray[np.bool_], backend: Backend, adapter: TaskAdapter | None
) -> Arrays:
    """Outputs that have one a token, with what the compiled model itself gives for padding.

    Nothing that counts depends on it, and packed models hold other numbers there than torch; but ONNX's own runner
    compares it.
    """
    names = [name for name, array in outputs.items() if array.ndim == 3]
    if not names or mask.all():
        return outputs
    own = run_session(open_session(path, backend.verified_on().runtime, threads=1), names, case.inputs, adapter)
    filled = {name: np.where(mask[..., None], outputs[name], at) for name, at in zip(names, own, strict=True)}
    return outputs | filled


@one_thread()
@torch.inference_mode()
def reference(model: CodaModel, case: Case) -> tuple[Arrays, list[Decision]]:
    """Torch's own outputs and decisions for one input."""
    output = model(**inputs_of(model, case), output_routing=True)
    decisions = [
        Decision(i, *(tensor.numpy() for tensor in routing))
        for i, routing in enumerate(output.routing)
        if routing is not None
    ]
    return outputs_of(model, output), decisions
