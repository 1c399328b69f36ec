"""How compiled models run: one file a target, each with a ``RUNTIME``."""

import json
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from coda_targets.errors import TargetError

DEFAULT_TARGET = "cpu"  # runs on every machine, so it is also what others are compared with and stood in for


@dataclass(frozen=True)
class Runtime:
    """One place to run, and what onnxruntime is asked for there.

    Attributes:
        name: as on the command line; the file is named alike.
        providers: onnxruntime execution providers with their options, best first; none for one that runs nothing.
        install: what to install when a provider is absent.
        device: kind of hardware, in onnxruntime's words: ``cpu``, ``gpu``.
        plugin: package that brings the one provider, where onnxruntime itself does not.
        native: whether the native kernels of the ``ai.coda`` operators serve it where they are installed.
        graph_level: how far onnxruntime optimises, one of ``coda_targets.manifest.GRAPH_LEVELS``.
        threads: intra-op threads, 0 for onnxruntime's own choice.
        session_options: attributes of ``onnxruntime.SessionOptions``.
        session_config: entries for ``SessionOptions.add_session_config_entry``.
        minimum_onnxruntime: the first release that can use it, where that is newer than what models need.
        refuses_unknown_ids: whether its gather refuses an index outside of the table; ``Bundle`` checks them otherwise.
        profiled_by_onnxruntime: whether onnxruntime sees each node that runs, and can write the graph it optimised.
        offered: whether people choose from it; others are found by name alone.
    """

    name: str
    providers: tuple[tuple[str, dict[str, Any]], ...]
    install: str
    device: str = "cpu"
    plugin: str = ""
    native: bool = False
    graph_level: str = "all"
    threads: int = 0
    session_options: dict[str, Any] = field(default_factory=dict)
    session_config: dict[str, str] = field(default_factory=dict)
    minimum_onnxruntime: str = ""
    refuses_unknown_ids: bool = True
    profiled_by_onnxruntime: bool = True
    offered: bool = True

    @property
    def preferred(self) -> str:
        """The execution provider that should run all of a model; empty where nothing runs."""
        return next((provider for provider, _ in self.providers), "")

    @property
    def options(self) -> dict[str, Any]:
        """Of the preferred execution provider."""
        return next((options for _, options in self.providers), {})

    @property
    def provider_options(self) -> dict[str, str]:
        """The options as the preferred execution provider itself is given them."""
        return {"load_config": json.dumps({"CPU": self.options}, sort_keys=True)} if self.plugin else self.options

    @property
    def distributions(self) -> tuple[str, ...]:
        """Packages that it needs beside onnxruntime, as they are installed."""
        return (self.plugin.replace("_", "-"),) if self.plugin else ()


def runtime_names() -> tuple[str, ...]:
    """The targets that people choose from, in alphabetical order."""
    found = (_in_file(module.name) for module in iter_modules(__path__))
    return tuple(sorted(runtime.name for runtime in found if runtime is not None and runtime.offered))


def get_runtime(name: str) -> Runtime:
    """Import one target's file.

    Raises:
        TargetError: unknown; the message lists the known ones.
    """
    known = any(name == module.name for module in iter_modules(__path__))  # nothing else is imported by a name
    runtime = _in_file(name) if known else None
    if runtime is None:
        raise TargetError(f"target {name!r} is unknown: use one of {', '.join(runtime_names())}")
    return runtime


def _in_file(name: str) -> Runtime | None:
    """The runtime of one of the files here; ``None`` where it helps others to run."""
    runtime: Runtime | None = getattr(import_module(f"{__name__}.{name}"), "RUNTIME", None)
    return runtime
