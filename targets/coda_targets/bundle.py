"""Opening a bundle and running it: all that an app needs."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coda_ops import native
from coda_ops.errors import first_line
from coda_targets.errors import BundleError, InputError, TargetError
from coda_targets.manifest import (
    CONFIG,
    GRAPH_LEVELS,
    MANIFEST,
    PART,
    LogitsInfo,
    Manifest,
    OodInfo,
    TaskInfo,
    VariantInfo,
    check_file,
    check_files,
    read_manifest,
    release,
    variants_of,
)
from coda_targets.manifest import MODEL as MODEL
from coda_targets.runtimes import plugin
from coda_targets.runtimes.saturation import saturates
from coda_targets.runtimes.target import Target, get_target
from coda_targets.task_adapters import Adapter

_LEVEL_NAMES = dict(zip(GRAPH_LEVELS, ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"), strict=True))
Arrays = dict[str, NDArray[Any]]


class Bundle:
    """A compiled model in a folder.

        bundle = Bundle("model-cpu")
        outputs = bundle.run({"input_ids": ids, "attention_mask": mask})

    Args:
        folder: what ``coda-compile MODEL -o DIR`` wrote.
        target, precision: of the variant to run. By default the first in the bundle's order that this machine can run.
        threads: intra-op threads, 0 for what the manifest says.

    The model and what else it needs are loaded on first use. What is loaded stays as it is when another bundle takes
    the folder; what was not yet loaded is refused from then on, so that answers of two bundles never mix. A bundle
    that this machine cannot run opens all the same: what it says of itself needs no runtime.

    Attributes:
        variant: what runs here; where nothing does, the first that was asked for.

    Raises:
        BundleError: no bundle, or a manifest that cannot be read; ``check`` compares every file with its SHA-256.
        TargetError: it has no such variant.
    """

    def __init__(
        self, folder: Path | str, *, target: str | None = None, precision: str | None = None, threads: int = 0
    ) -> None:
        self.folder = Path(folder)
        self._version = _version(self.folder)
        self.manifest: Manifest = read_manifest(self.folder)
        with self.reading():
            pass
        self._asked = variants_of(self.folder, self.manifest, target, precision)
        runs = (one for one in self._asked if not self.lacks(one))
        self.variant: VariantInfo = self._asked[0] if len(self._asked) == 1 else next(runs, self._asked[0])
        self.threads = threads
        self._adapters: dict[str, Adapter] = {}

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, variant={self.variant.name!r})"

    def lacks(self, variant: VariantInfo) -> str:
        """What this machine lacks to run a variant, in one sentence; empty where it can."""
        try:
            require_release(variant.minimum_onnxruntime)
            require_runtime(get_target(variant.target))
        except TargetError as error:
            return str(error)
        return ""

    @cached_property
    def target(self) -> Target:
        """The variant's target as this release knows it, with the session that the manifest asks for.

        Raises:
            TargetError: nothing that was asked for runs here: of each variant what is missing.
        """
        if lacking := self.lacks(self.variant):
            every = "; ".join(f"{one.name}: {self.lacks(one)}" for one in self._asked)
            raise TargetError(lacking if len(self._asked) == 1 else f"no variant of {self.folder} runs here: {every}")
        session = self.variant.session
        known = get_target(self.variant.target)
        first = tuple((name, session.options or options) for name, options in known.providers[:1])
        return replace(
            known,
            providers=(*first, *known.providers[1:]),
            native=session.native,
            graph_level=session.graph_level,
            threads=session.threads,
        )

    @property
    def model_path(self) -> Path:
        """The variant's ONNX file."""
        return self.folder / self.variant.models[PART]

    def check(self) -> None:
        """Compare every file with the manifest.

        Raises:
            BundleError: which file is missing or damaged, or in no manifest.
        """
        with self.reading():
            check_files(self.folder, self.manifest)

    @contextmanager
    def reading(self, *names: str) -> Iterator[None]:
        """A block that reads files of the bundle.

        Args:
            names: of files in the manifest that are read. Where they are links out of the folder, as in the hub's
                cache, only their SHA-256 says that they belong to the bundle, so it is compared first.

        Raises:
            BundleError: another bundle took the folder since this one was opened, or a link leads to something else.
        """
        try:
            for file in self.manifest.files:
                if file.path in names and not _inside(self.folder, file.path):
                    check_file(self.folder, file)
            yield
        except Exception:
            self._check_version()  # the better reason
            raise
        self._check_version()

    def _check_version(self) -> None:
        if _version(self.folder) != self._version:
            raise BundleError(f"{self.folder} was replaced since it was opened: open it again")

    @cached_property
    def session(self) -> ort.InferenceSession:
        """The onnxruntime session, made on first use.

        Raises:
            TargetError: the runtime for the bundle's target is not installed.
            BundleError: onnxruntime cannot load the model, or it is another bundle's by now.
        """
        with self.reading(*self.model_files):
            return open_session(self.model_path, self.target, threads=self.threads)

    @property
    def model_files(self) -> tuple[str, ...]:
        """Names of the variant's ONNX file and of the weights beside it, whose names end in ``.data``."""
        listed = (file.path for file in self.manifest.files)
        return (self.variant.models[PART], *(name for name in listed if name.endswith(".data")))

    @property
    def model_bytes(self) -> int:
        """Of the variant's ONNX file, and of its own part of the weights beside it."""
        name = self.variant.models[PART]
        return self.variant.external_bytes + sum(file.bytes for file in self.manifest.files if file.path == name)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that share the backbone; none where the bundle has but one."""
        return tuple(task.name for task in self.manifest.tasks)

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """Class names in order of the logits, of a task or of the only one.

        Raises:
            InputError: no such task.
        """
        return self.manifest.labels if task is None else self._task(task).labels

    def logits(self, task: str | None = None) -> LogitsInfo | None:
        """What the logits mean, of a task or of the only one; ``None`` without a classifier.

        Raises:
            InputError: no such task.
        """
        return self.manifest.logits if task is None else self._task(task).logits

    def ood(self, task: str | None = None) -> OodInfo | None:
        """How texts out of distribution are told, by a task or by the only one.

        Raises:
            InputError: no such task.
        """
        return self.manifest.ood if task is None else self._task(task).ood

    def adapter(self, task: str | None = None) -> Adapter | None:
        """What a task swaps in, read once; ``None`` for what the model itself holds.

        Raises:
            InputError: no such task.
            BundleError: its file is missing or damaged.
        """
        if task is None:
            return None
        if task not in self._adapters:
            path = self._task(task).adapter
            with self.reading(path):
                self._adapters[task] = Adapter(self.folder / path)
        return self._adapters[task]

    def _task(self, name: str) -> TaskInfo:
        found = next((task for task in self.manifest.tasks if task.name == name), None)
        if found is None:
            known = f"use one of {', '.join(self.tasks)}" if self.tasks else "this bundle has but one"
            raise InputError(f"task {name!r} is unknown: {known}")
        return found

    def run(self, inputs: Mapping[str, NDArray[Any]], *, task: str | None = None) -> Arrays:
        """Run the model.

        Args:
            task: one of ``tasks``; the first one where none is named.
            inputs: integer arrays by name, each [batch, sequence]; a missing ``attention_mask`` means all valid, a
                missing ``token_type_ids`` all zero.

        Returns:
            Output arrays by name.

        Raises:
            InputError: an unknown task, a missing or unknown name, a wrong type or shape, a sequence longer than
                ``manifest.max_tokens``, or values that the model cannot look up, such as ids beyond its vocabulary.
        """
        feed = self.prepare(inputs)
        names = [output.name for output in self.manifest.outputs]
        return dict(zip(names, run_session(self.session, names, feed, self.adapter(task)), strict=True))

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Check inputs, fill in what may be left out, and give them the model's types."""
        wanted = [tensor.name for tensor in self.manifest.inputs]
        unknown = sorted(set(inputs) - set(wanted))
        if unknown:
            raise InputError(f"input {unknown[0]!r} is unknown: this model takes {', '.join(wanted)}")
        if "input_ids" not in inputs:
            raise InputError(f"input 'input_ids' is missing: this model takes {', '.join(wanted)}")
        given = {name: _array(name, value) for name, value in inputs.items()}
        ids = given["input_ids"]
        if ids.ndim != 2 or 0 in ids.shape or ids.dtype.kind not in "iu":
            raise InputError(
                f"input_ids must be integers of shape [batch, sequence], not {ids.dtype} {list(ids.shape)}"
            )
        if ids.shape[1] > self.manifest.max_tokens:
            raise InputError(
                f"input_ids has {ids.shape[1]} tokens but this model takes at most {self.manifest.max_tokens}: truncate"
            )
        filled = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids), **given}
        for name in wanted:
            if filled[name].dtype.kind not in "iub":
                raise InputError(f"{name} must hold integers, not {filled[name].dtype}")
            if filled[name].shape != ids.shape:
                raise InputError(f"{name} has shape {list(filled[name].shape)} but input_ids has {list(ids.shape)}")
        if self.target.plugin:  # onnxruntime's own kernels refuse what is in no table; OpenVINO answers all the same
            for name, size in self._tables.items():
                if name in wanted and not ((-size <= filled[name]) & (filled[name] < size)).all():
                    raise InputError(f"{name} holds ids that this model does not know: it has {size} of them")
        return {name: np.ascontiguousarray(filled[name], dtype=np.int64) for name in wanted}

    @cached_property
    def _tables(self) -> dict[str, int]:
        """How many rows the tables have that inputs are looked up in."""
        with self.reading(CONFIG):
            config = json.loads((self.folder / CONFIG).read_text("utf-8"))
        sizes = {"input_ids": config.get("vocab_size"), "token_type_ids": config.get("type_vocab_size")}
        return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _version(folder: Path) -> tuple[int, bytes] | None:
    """What tells a manifest from every other one that takes its place: its bytes, and when they were written."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except OSError:
        return None


def _inside(folder: Path, name: str) -> bool:
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links; RuntimeError before Python 3.13
        return False


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{name} has rows of different lengths: pad them and mask the padding") from None


def run_session(
    session: ort.InferenceSession, names: list[str], feed: Arrays, adapter: Adapter | None = None
) -> list[NDArray[Any]]:
    """Run a session, with the tensors of an adapter in the place of the model's own.

    Raises:
        InputError: what onnxruntime says of inputs that it cannot run.
    """
    try:
        results: list[NDArray[Any]] = session.run(names, feed, None if adapter is None else adapter.options)
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise InputError(f"onnxruntime cannot run the model on this input: {first_line(error)}") from None
    return results


def open_session(
    model: Path | bytes, target: Target, *, threads: int = 0, weights: Path | None = None
) -> ort.InferenceSession:
    """An onnxruntime session with the target's providers and options.

    Args:
        model: a file, or a model in memory whose external weights, if any, lie in the folder ``weights``.

    Raises:
        TargetError: a provider is not installed; onnxruntime itself would fall back to the CPU without a word. Or the
            native kernels are installed and cannot be loaded.
        BundleError: onnxruntime cannot load the model.
    """
    require_runtime(target)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or target.threads
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{_LEVEL_NAMES[target.graph_level]}")
    for name, value in target.session_options.items():
        setattr(options, name, value)
    for name, value in target.session_config.items():
        options.add_session_config_entry(name, value)
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if target.native and (kernels := native.library()) is not None:
        load_kernels(kernels, options)
    if target.plugin:
        plugin.add(options, target, threads or target.threads)
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=None if target.plugin else list(target.providers),
        )
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        where = "the model" if isinstance(model, bytes) else str(model)
        raise BundleError(f"onnxruntime cannot load {where}: {first_line(error)}") from None


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


def require_runtime(target: Target) -> None:
    """Check that a target's providers are here.

    Raises:
        TargetError: what to install.
    """
    if target.plugin:
        plugin.device(target)
        return
    absent = [name for name, _ in target.providers if name not in ort.get_available_providers()]
    if absent or not target.providers:
        what = f"{absent[0]} is not installed: {target.install}" if absent else target.install
        raise TargetError(f"target {target.name!r} cannot run here: {what}")


def load_kernels(library: Path, options: ort.SessionOptions | None = None) -> None:
    """Have a session run native kernels where its model has ``ai.coda`` operators.

    Raises:
        TargetError: onnxruntime cannot load the library.
    """
    try:
        (options or ort.SessionOptions()).register_custom_ops_library(str(library))
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise TargetError(
            f"onnxruntime cannot load the native kernels in {library}: {first_line(error)}; build them again with "
            f"`coda-compile kernels build`, or do without: {native.SWITCH}=portable"
        ) from None
