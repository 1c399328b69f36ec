"""A target as one compilation takes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from coda_compile.errors import OptionError, VerificationError
from coda_ops import native
from coda_targets import Target, get_target
from coda_targets.bundle import require_runtime


def complete(target: Target | str) -> Target:
    """A target that models can be compiled for, here.

    Raises:
        TargetError: unknown, or what verifies for it is not installed.
        OptionError: not finished.
    """
    found = get_target(target) if isinstance(target, str) else target
    if found.lacks:
        raise OptionError(
            "target {name!r} is not finished, it still lacks {lacks}: use {target} cpu",
            name=found.name,
            lacks=found.lacks,
        )
    if found.providers:
        require_runtime(found)  # there parity is measured
    return found


def packing(target: Target) -> Target:
    """With packed rows, made once projections are one product and before the rest is fused.

    Raises:
        OptionError: it has no such place.
    """
    if "fuse_projections" not in target.lowering:
        raise OptionError("target {name!r} packs no rows: leave {pack} out", name=target.name)
    after = target.lowering.index("fuse_projections") + 1
    return replace(target, lowering=(*target.lowering[:after], "pack_rows", *target.lowering[after:]))


def verified_on(target: Target, *, kernels: bool = False) -> Target:
    """Where parity is measured: on the target itself, or on a CPU where the target runs nothing.

    Without native kernels first, because the function bodies are what the bundle carries.
    """
    return replace(target, native=kernels, providers=target.providers or get_target("cpu").providers)


def with_kernels(target: Target) -> Target | None:
    """The same with native kernels, where they serve it and are built here."""
    return verified_on(target, kernels=True) if target.native and target.providers and native.library() else None


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
