"""How compiled models run: one file a target, each with a ``RUNTIME``."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from coda_targets.errors import TargetError

if TYPE_CHECKING:
    from coda_targets.profile import Profile
    from coda_targets.signature import Signature

CPU, GPU = "cpu", "gpu"  # kinds of hardware, in onnxruntime's words
DEFAULT_TARGET = "cpu"  # runs on every machine, so it is also what others are compared with and stood in for


@dataclass(frozen=True)
class Runtime:
    """One place to run, and what onnxruntime is asked for there.

    Attributes:
        name: as on the command line; the file is named alike, with ``_`` for ``-``.
        providers: onnxruntime execution providers with their options, best first; none for one that runs nothing.
        install: what to install when a provider is absent.
        device: kind of hardware, ``CPU`` or ``GPU``.
        plugin: package that brings the one provider, where onnxruntime itself does not.
        config_option: option of the plugin that takes its settings by device, as JSON; empty where each is an option.
        thread_option: setting of the plugin that says how many threads it takes; empty where none does.
        profile_option: option of the provider that takes the shapes of a profile, with ``{}`` for ``min``, ``opt`` and
            ``max``; empty where models run at any size.
        cache_options: options that have the provider keep what it builds, with ``{}`` for a folder.
        kernels: the library of native kernels that serves it where it is installed, by its name in
            ``coda_ops.native.LIBRARIES``; empty where none does.
        graph_level: how far onnxruntime optimises, one of ``coda_targets.manifest.GRAPH_LEVELS``.
        threads: intra-op threads, 0 for onnxruntime's own choice.
        session_options: attributes of ``onnxruntime.SessionOptions``.
        session_config: entries for ``SessionOptions.add_session_config_entry``.
        minimum_onnxruntime: the first release that can use it, where that is newer than what models need.
        profiled_by_onnxruntime: whether onnxruntime sees each node that runs, and can write the graph it optimised.
        offered: whether people choose from it; others are found by name alone.
        captures: whether CUDA graphs can be made of its runs.
        index: which of several devices is taken.
        memory_limit: bytes of the device that a session may take; ``None`` for all.
        cuda_graph: whether a session is made for CUDA graphs.
        profile: sizes that the model was compiled for; ``None`` for any.
        built_of: SHA-256 of the model, under which what is built of it is kept; empty for keeping nothing.
    """

    name: str
    providers: tuple[tuple[str, dict[str, Any]], ...]
    install: str
    device: str = CPU
    plugin: str = ""
    config_option: str = ""
    thread_option: str = ""
    profile_option: str = ""
    cache_options: Mapping[str, str] = field(default_factory=dict)
    kernels: str = ""
    graph_level: str = "all"
    threads: int = 0
    session_options: dict[str, Any] = field(default_factory=dict)
    session_config: dict[str, str] = field(default_factory=dict)
    minimum_onnxruntime: str = ""
    profiled_by_onnxruntime: bool = True
    offered: bool = True
    captures: bool = False
    index: int = 0
    memory_limit: int | None = None
    cuda_graph: bool = False
    profile: "Profile | None" = None
    built_of: str = ""

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
        if not self.config_option:
            return self.options
        return {self.config_option: json.dumps({self.device.upper(): self.options}, sort_keys=True)}

    @property
    def distributions(self) -> tuple[str, ...]:
        """Packages that it needs beside onnxruntime, as they are installed."""
        return (self.plugin.replace("_", "-"),) if self.plugin else ()

    def sized(self, profile: "Profile", signature: "Signature") -> "Runtime":
        """The same for models that are compiled for a profile.

        Args:
            signature: of the model.
        """
        bounds = {"min": profile.least, "opt": profile.best, "max": profile.most}
        shapes = {self.profile_option.format(kind): profile.shapes(at, signature) for kind, at in bounds.items()}
        return replace(self.with_options(shapes), profile=profile)

    def with_options(self, options: Mapping[str, Any]) -> "Runtime":
        """The same with more options of the preferred execution provider."""
        (name, own), *others = self.providers
        return replace(self, providers=((name, {**own, **options}), *others))

    def on_device(self, index: int = 0, memory_limit: int | None = None, *, cuda_graph: bool = False) -> "Runtime":
        """The same on one of several devices, with no more of its memory than is allowed.

        Raises:
            TargetError: a device or a limit that cannot be, or a target that has no such choice.
        """
        if index < 0 or (memory_limit is not None and memory_limit < 1):
            what = f"device {index}" if index < 0 else f"memory_limit {memory_limit}"
            raise TargetError(f"{what} cannot be: devices count from 0, and memory_limit is a number of bytes")
        if self.device == CPU and (index or memory_limit is not None):
            raise TargetError(
                f"target {self.name!r} has one device and all of its memory: leave device and memory_limit out, or "
                "choose another target"
            )
        if cuda_graph and not self.captures:
            raise TargetError(
                f"target {self.name!r} has no CUDA graphs: leave cuda_graph out, or choose another target"
            )
        return replace(self, index=index, memory_limit=memory_limit, cuda_graph=cuda_graph)


def files_by_name(folder: Iterable[str]) -> dict[str, str]:
    """The modules of a package by what their names are on the command line.

    Args:
        folder: ``__path__`` of the package.
    """
    return {module.name.replace("_", "-"): module.name for module in iter_modules(folder)}


def runtime_names() -> tuple[str, ...]:
    """The targets that people choose from, in alphabetical order."""
    found = map(_in_file, files_by_name(__path__).values())
    return tuple(sorted(runtime.name for runtime in found if runtime is not None and runtime.offered))


def get_runtime(name: str) -> Runtime:
    """Import one target's file.

    Raises:
        TargetError: unknown; the message lists the known ones.
    """
    file = files_by_name(__path__).get(name)  # nothing else is imported by a name
    runtime = None if file is None else _in_file(file)
    if runtime is None:
        raise TargetError(f"target {name!r} is unknown: use one of {', '.join(runtime_names())}")
    return runtime


def _in_file(name: str) -> Runtime | None:
    """The runtime of one of the files here; ``None`` where it helps others to run."""
    runtime: Runtime | None = getattr(import_module(f"{__name__}.{name}"), "RUNTIME", None)
    return runtime
