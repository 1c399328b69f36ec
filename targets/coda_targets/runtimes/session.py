"""Sessions of onnxruntime: opening one as a runtime asks for it, and running it."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from coda_ops import native
from coda_ops.errors import first_line
from coda_targets.errors import BundleError, InputError, TargetError
from coda_targets.manifest import GRAPH_LEVELS, MANIFEST, MOST_THREADS, Manifest, release
from coda_targets.runtimes import DEFAULT_TARGET, GPU, Runtime, engine_cache, nvidia, plugin
from coda_targets.runtimes.placement import RECORDED, check_placement
from coda_targets.runtimes.saturation import saturates
from coda_targets.signature import Arrays
from coda_targets.task_adapters import TaskAdapter

_SILENT = 4  # whatever is an error comes as an exception, too
_LEVEL_NAMES = dict(zip(GRAPH_LEVELS, ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"), strict=True))


def open_session(
    model: Path | bytes, runtime: Runtime, *, threads: int = 0, weights: Path | None = None
) -> ort.InferenceSession:
    """An onnxruntime session with a runtime's providers and options.

    Args:
        model: a file, or a model in memory whose external weights, if any, lie in the folder ``weights``.

    Raises:
        InputError: a number of threads that no machine has.
        TargetError: a provider is not installed, or runs less of the model than it should; onnxruntime itself would
            fall back to the CPU without a word. Or its device has too little memory.
        BundleError: onnxruntime cannot load the model.

    Native kernels that are installed and cannot be loaded are a ``KernelWarning``; function bodies run.
    """
    if not 0 <= threads <= MOST_THREADS:  # onnxruntime makes them before it is asked to run anything
        raise InputError(f"{threads} threads cannot be: give 0 for onnxruntime's own choice, or at most {MOST_THREADS}")
    require_runtime(runtime)
    without_cache, kept = replace(runtime, built_of=""), engine_cache.kept(runtime)
    runtime = engine_cache.with_cache(runtime)
    placed = runtime.device == GPU and not runtime.plugin
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT if placed else 3
    options.intra_op_num_threads = threads or runtime.threads
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{_LEVEL_NAMES[runtime.graph_level]}")
    for name, value in runtime.session_options.items():
        setattr(options, name, value)
    for name, value in runtime.session_config.items():
        options.add_session_config_entry(name, value)
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if runtime.kernels:
        usable_kernels(runtime.kernels, options)
    if runtime.plugin:
        plugin.add(options, runtime, threads or runtime.threads)
    if placed:
        options.add_session_config_entry(RECORDED, "1")
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    where = "the model" if isinstance(model, bytes) else str(model)
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=None if runtime.plugin else nvidia.providers(runtime) if placed else list(runtime.providers),
            enable_fallback=0,  # to the CPU, now or in a run
        )
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        if kept:  # what was built before may be damaged; it is not used twice
            engine_cache.forget(runtime)
            return open_session(model, without_cache, threads=threads, weights=weights)
        if runtime.device == GPU and (meaning := nvidia.explain(str(error), runtime.index, where=where)):
            raise TargetError(meaning) from None
        raise BundleError(f"onnxruntime cannot load {where}: {first_line(error)}") from None
    if placed:
        if session.get_providers()[0] != runtime.preferred:
            raise TargetError(nvidia.why_not(runtime))
        check_placement(session, runtime)
    return session


def run_session(
    session: ort.InferenceSession, names: list[str], feed: Arrays, adapter: TaskAdapter | None = None
) -> list[NDArray[Any]]:
    """Run a session, with the tensors of an adapter in the place of the model's own.

    Raises:
        InputError: what onnxruntime says of inputs that it cannot run.
        TargetError: its device has too little memory, or is one that onnxruntime holds no code for.
    """
    with run_errors(session):
        results: list[NDArray[Any]] = session.run(names, feed, None if adapter is None else adapter.options)
    return results


@contextmanager
def run_errors(session: ort.InferenceSession) -> Iterator[None]:
    """A block that runs a session, and raises what ``run_session`` does."""
    try:
        yield
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        on_device = session.get_provider_options().get(nvidia.PROVIDER)
        if on_device is not None and (meaning := nvidia.explain(str(error), int(on_device.get("device_id", 0)))):
            raise TargetError(meaning) from None
        raise InputError(f"onnxruntime cannot run the model on this input: {first_line(error)}") from None


def check_declared(session: ort.InferenceSession, manifest: Manifest, model: Path) -> None:
    """Hold what a manifest says that a model takes and gives against the model.

    Raises:
        BundleError: names the first tensor that the model does not have so.
    """
    takes = [(one.name, one.axes) for one in manifest.signature.inputs]
    gives = [(one.name, one.shape) for one in manifest.outputs]
    for declared, there in ((takes, session.get_inputs()), (gives, session.get_outputs())):
        known = {one.name: one.shape for one in there}
        for name, shape in declared:
            if name not in known or not _alike(shape, known[name]):
                raise BundleError(
                    f"{model} does not have {name!r} as {MANIFEST} says, so they are of two bundles: compile it again"
                )


def _alike(declared: Sequence[int | str], found: Sequence[int | str | None]) -> bool:
    """Whether shapes have as many axes, and no two sizes for one of them."""
    fixed = [{one for one in axis if isinstance(one, int)} for axis in zip(declared, found, strict=False)]
    return len(declared) == len(found) and all(len(sizes) < 2 for sizes in fixed)


def require_runtime(runtime: Runtime) -> None:
    """Check that the providers of a runtime are here.

    Raises:
        TargetError: what to install.
    """
    if runtime.plugin:
        plugin.device(runtime)
        return
    if runtime.device == GPU:
        require_release(runtime.minimum_onnxruntime)
        nvidia.require(runtime)
        return
    absent = [name for name, _ in runtime.providers if name not in ort.get_available_providers()]
    if absent or not runtime.providers:
        what = f"{absent[0]} is not installed: {runtime.install}" if absent else runtime.install
        raise TargetError(f"target {runtime.name!r} cannot run here: {what}")


def place(runtime: Runtime) -> str:
    """Where a runtime runs models on this machine, as proofs name it: its execution provider, and a GPU's name."""
    name = nvidia.device_name(runtime.index) if runtime.device == GPU else ""
    return f"{runtime.preferred} {name}".strip()


def require_release(minimum: str) -> None:
    """Check that onnxruntime is as new as a model needs: an older one may give wrong numbers without a word.

    Raises:
        TargetError: what is here, and what to install.
    """
    if release(ort.__version__) < release(minimum):
        raise TargetError(
            f"the model needs onnxruntime {minimum} or newer and {ort.__version__} is installed: "
            f'pip install --upgrade "onnxruntime>={minimum}"'
        )


def usable_kernels(name: str, options: ort.SessionOptions | None = None) -> Path | None:
    """The native kernels that sessions here run; ``None`` where they are not built, switched off or cannot be loaded.

    Args:
        name: of the library, in ``coda_ops.native.LIBRARIES``.
        options: of a session that is to run them.

    Warns:
        KernelWarning: they are built and cannot be loaded.
    """
    library = native.library(name)
    if library is None:
        return None
    try:
        load_kernels(library, options, name=name)
    except TargetError as error:
        warnings.warn(f"{error}; the model runs on its function bodies", native.KernelWarning, stacklevel=1)
        return None
    return library


def load_kernels(library: Path, options: ort.SessionOptions | None = None, *, name: str = DEFAULT_TARGET) -> None:
    """Have a session run native kernels where its model has ``ai.coda`` operators.

    Args:
        name: of the library, in ``coda_ops.native.LIBRARIES``.

    Raises:
        TargetError: onnxruntime cannot load the library.
    """
    try:
        if native.is_cut(library):
            raise native.KernelError("its end is missing")
        (options or ort.SessionOptions()).register_custom_ops_library(str(library))
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise TargetError(
            f"onnxruntime cannot load the native kernels in {library}: {first_line(error)}; build them again with "
            f"`coda-compile kernels build --target {name}`, or do without: {native.SWITCH}=portable"
        ) from None
