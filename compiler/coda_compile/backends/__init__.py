"""How models are compiled, one file a target, each with a ``BACKEND``; ``coda_targets.runtimes`` says how they run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, nn

from coda_compile.errors import OptionError
from coda_compile.passes import Pass
from coda_targets import Runtime, TargetError, get_runtime, runtime_names
from coda_targets.profile import Profile
from coda_targets.proofs import ProofInfo
from coda_targets.runtimes import CPU, DEFAULT_TARGET, files_by_name
from coda_targets.runtimes.session import require_runtime, usable_kernels
from coda_targets.signature import Signature

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
    """

    runtime: Runtime
    opset: int
    precisions: tuple[str, ...]
    packs_rows: bool = False
    swaps_tasks: bool = False

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.runtime.name

    @abstractmethod
    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        """What a graph goes through, in order; each pass is for one graph.

        Args:
            pack: multiply the tokens that are really there alone; where ``packs_rows``.
            half: compute in float16; where a precision of the target does so.
        """

    @abstractmethod
    def check(self, model: ir.Model) -> None:
        """Refuse what the runtime cannot run, after the passes.

        Raises:
            CompileError: the operator, and why it is not taken.
        """

    def sized(self, profile: Profile | None, signature: Signature) -> "Backend":
        """The same for inputs of certain sizes, of a target whose models are compiled for such.

        Args:
            profile: what a user asks for; ``None`` for what the target itself proposes.
            signature: of the model.

        Raises:
            OptionError: sizes that the model does not take.
        """
        if not self.runtime.profile_option:
            return self
        chosen = profile or Profile.of(signature)
        if chosen.most[1] > signature.max_length:
            raise OptionError(
                "{profile} {asked} goes beyond the {longest} {unit} that this model takes: give at most that",
                asked=str(chosen),
                longest=signature.max_length,
                unit=signature.unit,
            )
        return replace(self, runtime=self.runtime.sized(chosen, signature))

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

    def prove(self, path: Path, signature: Signature) -> tuple[ProofInfo, ...]:
        """Show more of a compiled file than parity, which it has.

        Raises:
            CompileError: the runtime cannot make of it what it should.
        """
        return ()

    def runs_here(self) -> bool:
        """Whether this machine can run what is compiled; what needs no device of its own has to be installed."""
        if not self.runtime.providers or self.runtime.device == CPU:
            return bool(self.runtime.providers)
        try:
            require_runtime(self.runtime)
        except TargetError:
            return False
        return True

    def verified_on(self, *, kernels: bool = False) -> "Backend":
        """The same where parity is measured: on its runtime, or on the default one where that cannot run.

        Args:
            kernels: with native kernels; without them first, because function bodies are what the bundle carries.
        """
        runtime = self.runtime if self.runs_here() else replace(get_runtime(DEFAULT_TARGET), name=self.name)
        return replace(self, runtime=replace(runtime, kernels=self.runtime.kernels if kernels else ""))

    def with_kernels(self) -> "Backend | None":
        """The same with native kernels, where they serve its runtime, can be loaded, and parity is measured on it."""
        library = self.runtime.kernels
        served = library and usable_kernels(library) is not None and self.runs_here()
        return self.verified_on(kernels=True) if served else None


def backend_names() -> tuple[str, ...]:
    """The targets that people can name to compile for, in alphabetical order."""
    files = files_by_name(__path__)
    return tuple(name for name in runtime_names() if name in files)


def get_backend(name: str) -> Backend:
    """Import one target's file.

    Raises:
        TargetError: unknown; the message lists the known ones.
    """
    backend = None
    if file := files_by_name(__path__).get(name):  # nothing else is imported by a name
        backend = getattr(import_module(f"{__name__}.{file}"), "BACKEND", None)
    if not isinstance(backend, Backend):
        raise TargetError(f"target {name!r} is unknown: use one of {', '.join(backend_names())}")
    return backend


def ready_backend(target: Backend | str) -> Backend:
    """A backend that can compile, and verify what it compiled, here; its device need not be here.

    Raises:
        TargetError: unknown, or what verifies for it is not installed.
    """
    backend = get_backend(target) if isinstance(target, str) else target
    require_runtime(backend.verified_on().runtime)  # there parity is measured
    return backend
