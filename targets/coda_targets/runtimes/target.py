"""What a target is, and finding one by its name."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from coda_targets.errors import TargetError

_NAMES = ("cpu", "openvino", "cuda", "tensorrt")


@dataclass(frozen=True)
class Target:
    """One place to run.

    Attributes:
        name: as on the command line.
        summary: one line for people.
        providers: onnxruntime execution providers with their options, best first; none for a target that runs nothing.
        device: kind of hardware, in onnxruntime's words: ``cpu``, ``gpu``.
        plugin: package that brings the one provider, where onnxruntime itself does not.
        opset: of the default ONNX domain.
        operators: how the ``ai.coda`` operators are carried: ``function``, or ``inlined`` into standard ones.
        native: whether the native kernels of those operators serve it where they are installed.
        graph_level: how far onnxruntime optimises, one of ``coda_targets.manifest.GRAPH_LEVELS``.
        threads: intra-op threads, 0 for onnxruntime's own choice.
        precisions: what weights and activations may be.
        static_shapes: whether batch and sequence are fixed at compile time.
        lowering: names of the passes of ``coda_compile.passes``, in order.
        wide_floats: whether float64 is computed as such, which the iterations behind gates ask for.
        session_options: attributes of ``onnxruntime.SessionOptions``.
        session_config: entries for ``SessionOptions.add_session_config_entry``.
        install: what to install when a provider is absent.
        lacks: what is still missing before models can be compiled for it; empty when it is complete.
    """

    name: str
    summary: str
    providers: tuple[tuple[str, dict[str, Any]], ...]
    opset: int
    operators: str
    precisions: tuple[str, ...]
    static_shapes: bool
    lowering: tuple[str, ...]
    device: str = "cpu"
    plugin: str = ""
    native: bool = False
    graph_level: str = "all"
    threads: int = 0
    wide_floats: bool = True
    session_options: dict[str, Any] = field(default_factory=dict)
    session_config: dict[str, str] = field(default_factory=dict)
    install: str = ""
    lacks: str = ""


def target_names() -> tuple[str, ...]:
    """The targets that people choose from."""
    return _NAMES


def get_target(name: str) -> Target:
    """Import one target's file.

    Raises:
        TargetError: unknown; the message lists the known ones.
    """
    if name not in (*_NAMES, "null"):
        raise TargetError(f"target {name!r} is unknown: use one of {', '.join(_NAMES)}")
    target: Target = import_module(f"coda_targets.runtimes.{name}").TARGET
    return target
