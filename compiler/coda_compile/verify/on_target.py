"""Verify a compiled model where it will run, on function bodies and on native kernels, and keep what failed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coda_compile.backends import Backend
from coda_compile.errors import VerificationError
from coda_compile.verify.cases import Case
from coda_compile.verify.kernels import of_kernels
from coda_compile.verify.parity import CaseParity
from coda_compile.verify.reference_vectors import ReferenceVectors
from coda_compile.verify.reproduction import failure_folder, keep_failure
from coda_targets.signature import Arrays

OnFailure = Callable[[Case, Arrays, Arrays], None]  # the case, and what either side gave for it


@dataclass(frozen=True)
class Verified:
    """What was proved of a model, and what makes others able to prove it again.

    Attributes:
        parity: how every case compared.
        vectors: of the case that a bundle carries along.
    """

    parity: Sequence[CaseParity]
    vectors: ReferenceVectors


class Compare(Protocol):
    """Holds a compiled model against its original, on a target."""

    def __call__(self, backend: Backend, *, on_failure: OnFailure) -> list[CaseParity]:
        """Compare every case; what differs raises ``VerificationError`` once ``on_failure`` was called."""


def verify_on_target(
    compare: Compare, path: Path, backend: Backend, output: Path, adapter: Path | None = None
) -> list[CaseParity]:
    """Compare a model with what was compiled of it, and keep beside ``output`` what reproduces a failure.

    Function bodies are what the bundle carries, and what is reported. Where native kernels are built they have to give
    the same.

    Args:
        path: of the compiled file.
        adapter: file of the task that is swapped in.

    Raises:
        VerificationError: what differs, and where to reproduce it.
    """
    failed = failure_folder(output)

    def run(on: Backend) -> list[CaseParity]:
        def keep(case: Case, expected: Arrays, actual: Arrays) -> None:
            keep_failure(failed, path, case.inputs, expected, actual, adapter=adapter, runtime=on.runtime)

        return compare(on, on_failure=keep)

    try:
        parity, kernels = run(backend.verified_on()), backend.with_kernels()
        if kernels is not None:
            with of_kernels(kernels.runtime.kernels):
                run(kernels)
    except VerificationError as error:
        raise VerificationError(f"{error}; reproduction in {failed}") from None
    return parity
