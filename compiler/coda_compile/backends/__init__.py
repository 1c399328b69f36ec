"""How models are compiled, one file a target, each with a ``BACKEND``; ``coda_targets.runtimes`` says how they run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, nn

from coda_compile.passes import Pass
from coda_ops import native
from coda_targets import Runtime, TargetError, get_runtime, runtime_names
from coda_targets.runtimes import DEFAULT_TARGET
from coda_targets.runtimes.session import require_runtime

# A quantised linear module and its input [..., inputs] -> [..., outputs].
Linear = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Backend(ABC):
    """One target's side of compiling.

    Attributes:
        runtime: where its models run.
        opset: of the default ONNX domain.
        precisions: what weights and activations may be.
        packs_rows: whether ``passes`` can pack the rows of a batch.
        swaps_tasks: whether the tensors of another task can take the place of the model's own at run time.
        lacks: what is still missing before models can be compiled for it; empty when it is complete.
    """

    runtime: Runtime
    opset: int
    precisions: tuple[str, ...]
    packs_rows: bool = False
    swaps_tasks: bool = False
    lacks: str = ""

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.runtime.name

    @abstractmethod
    def passes(self, *, pack: bool = False) -> list[Pass]:
        """What a graph goes through, in order; each pass is for one graph.

        Args:
            pack: multiply the tokens that are really there alone; where ``packs_rows``.
        """

    @abstractmethod
    def check(self, model: ir.Model) -> None:
        """Refuse what the runtime cannot run, after the passes.

        Raises:
            CompileError: the operator, and why it is not taken.
        """

    def gate_tolerance(self, scores: NDArray[np.float32], epsilon: float) -> float:
        """How far gates may be off that the runtime computes from scores, beyond what every runtime is allowed.

        Args:
            scores: of all tokens that count.
            epsilon: the last one of the soft top-k's schedule.
        """
        return 0.0

    def linears_as_written(self) -> Mapping[type[nn.Module], Linear]:
        """What the passes make of quantised linear modules, by class, where that computes something else than torch."""
        return {}

    def linears_as_run(self, model: nn.Module) -> Mapping[type[nn.Module], Linear]:
        """How this machine's runtime computes a model's quantised linear modules, where not as torch does.

        Raises:
            VerificationError: in none of the ways that are known.
        """
        return {}

    def verified_on(self, *, kernels: bool = False) -> "Backend":
        """The same where parity is measured: on its runtime, or on the default one where that runs nothing.

        Args:
            kernels: with native kernels; without them first, because function bodies are what the bundle carries.
        """
        providers = self.runtime.providers or get_runtime(DEFAULT_TARGET).providers
        return replace(self, runtime=replace(self.runtime, native=kernels, providers=providers))

    def with_kernels(self) -> "Backend | None":
        """The same with native kernels, where they serve its runtime and are built here."""
        served = self.runtime.native and self.runtime.providers and native.library() is not None
        return self.verified_on(kernels=True) if served else None


def backend_names() -> tuple[str, ...]:
    """The targets that people can name to compile for, in alphabetical order."""
    files = {module.name for module in iter_modules(__path__)}
    return tuple(name for name in runtime_names() if name in files)


def get_backend(name: str) -> Backend:
    """Import one target's file.

    Raises:
        TargetError: unknown; the message lists the known ones.
    """
    backend = None
    if any(name == module.name for module in iter_modules(__path__)):  # nothing else is imported by a name
        backend = getattr(import_module(f"{__name__}.{name}"), "BACKEND", None)
    if not isinstance(backend, Backend):
        raise TargetError(f"target {name!r} is unknown: use one of {', '.join(backend_names())}")
    return backend


def ready_backend(target: Backend | str) -> Backend:
    """A backend that can compile, and verify what it compiled, here.

    Raises:
        TargetError: unknown, not finished, or what verifies for it is not installed.
    """
    backend = get_backend(target) if isinstance(target, str) else target
    if backend.lacks:
        raise TargetError(
            f"target {backend.name!r} is not finished, it still lacks {backend.lacks}: use --target {DEFAULT_TARGET}"
        )
    if backend.runtime.providers:
        require_runtime(backend.runtime)  # there parity is measured
    return backend
