"""Verifying with the native kernels, after the function bodies."""

from collections.abc import Iterator
from contextlib import contextmanager

from coda_compile.errors import VerificationError
from coda_ops import native


@contextmanager
def of_kernels() -> Iterator[None]:
    """Say of a failed verification that native kernels are what failed."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(
            f"with the native kernels in {native.LIBRARY} {error}; function bodies are right: build the kernels again "
            f"with `coda-compile kernels build`, or do without: {native.SWITCH}=portable"
        ) from None
