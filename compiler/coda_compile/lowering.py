"""A target as one compilation takes it."""

from dataclasses import replace

from coda_targets import Target, TargetError, get_target
from coda_targets.bundle import require_runtime


def complete(target: Target | str) -> Target:
    """A target that models can be compiled for, here.

    Raises:
        TargetError: unknown, not finished, or what verifies for it is not installed.
    """
    found = get_target(target) if isinstance(target, str) else target
    if found.lacks:
        raise TargetError(f"target {found.name!r} is not finished, it still lacks {found.lacks}: use --target cpu")
    if found.providers:
        require_runtime(found)  # there parity is measured
    return found


def packing(target: Target) -> Target:
    """With packed rows, made once projections are one product and before the rest is fused.

    Raises:
        TargetError: it has no such place.
    """
    if "fuse_projections" not in target.lowering:
        raise TargetError(f"target {target.name!r} packs no rows: leave out --pack")
    after = target.lowering.index("fuse_projections") + 1
    return replace(target, lowering=(*target.lowering[:after], "pack_rows", *target.lowering[after:]))


def verified_on(target: Target) -> Target:
    """Where parity is measured: on the target itself, or on a CPU where the target runs nothing.

    Without native kernels, because the function bodies are what the bundle carries.
    """
    return replace(target, native=False, providers=target.providers or get_target("cpu").providers)
