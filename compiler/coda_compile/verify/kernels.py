"""Verifying with the native kernels, after the function bodies."""

from collections.abc import Iterator
from contextlib import contextmanager

from coda_compile.errors import VerificationError
from coda_ops import native


@contextmanager
def of_kernels(library: str) -> Iterator[None]:
    """Say of a failed verification that the native kernels of a library are what failed."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(
            f"with the native kernels in {native.LIBRARIES[library].path} {error}; function bodies are right: build "
            f"the kernels again with `coda-compile kernels build --target {library}`, or do without: "
            f"{native.SWITCH}=portable"
        ) from None
