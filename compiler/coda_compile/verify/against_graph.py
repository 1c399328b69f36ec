"""Verify a compiled model against the ONNX file that it was made from."""

from collections.abc import Callable
from pathlib import Path

from coda_compile.backends import Backend
from coda_compile.errors import VerificationError
from coda_compile.verify.cases import Case, cases
from coda_compile.verify.parity import CaseParity, Comparison, Tolerances
from coda_targets.errors import InputError
from coda_targets.routing import RoutingProbe
from coda_targets.signature import Arrays, Signature


def verify(
    signature: Signature,
    reference: Callable[[Arrays], Arrays],
    path: Path,
    backend: Backend,
    *,
    threshold: float | None = None,
    on_failure: Callable[[Case, Arrays, Arrays], None] = lambda case, expected, actual: None,
) -> list[CaseParity]:
    """Run every case through the file as it came and through what was compiled of it, and compare.

    Args:
        signature: of both.
        reference: runs the file as it came.
        path: of what was compiled.
        threshold: above which an out-of-distribution score flags a sequence, where there is a detector.
        on_failure: called with the case and both sides' outputs before the error is raised.

    Raises:
        VerificationError: which output and input.
    """
    probe = RoutingProbe(path, backend.runtime, threads=1)
    results = []
    for case in cases(signature):
        expected, actual = reference(case.inputs), Arrays()
        try:
            actual, _ = probe.run(case.inputs)
            comparison = Comparison(case.name, signature.mask(case.inputs), Tolerances(), replayed=True)
            if threshold is not None:
                comparison.flags(actual, threshold)
            results.append(comparison.outputs(expected, actual))
        except (InputError, VerificationError) as error:
            on_failure(case, expected, actual)
            if isinstance(error, InputError):  # a valid input, so the model is what cannot run
                raise VerificationError(f"verification failed on input '{case.name}': {error}") from None
            raise
    return results
