"""Open and run a bundle: all that an app needs."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
from numpy.typing import NDArray

from coda_ops.files import check_plain
from coda_targets.bundle_files import check_file, check_files, inside, version
from coda_targets.errors import BundleError, InputError, TargetError
from coda_targets.manifest import MODEL as MODEL
from coda_targets.manifest import (
    PART,
    LogitsInfo,
    Manifest,
    OodInfo,
    TaskInfo,
    VariantInfo,
    read_manifest,
    variants_of,
)
from coda_targets.runtimes import Runtime, get_runtime
from coda_targets.runtimes.cuda_graphs import BY_VALUE, MOST_GRAPHS, CudaGraphs
from coda_targets.runtimes.session import (
    check_declared,
    open_session,
    require_release,
    require_runtime,
    run_errors,
    run_session,
)
from coda_targets.signature import Arrays as Arrays
from coda_targets.task_adapters import TaskAdapter

if TYPE_CHECKING:
    from coda_targets.modalities import Codec


class Bundle:
    """A compiled model in a folder.

        bundle = Bundle("model-cpu")
        records = bundle.predict(["one text", "another"])
        outputs = bundle.run(arrays)  # by the names in bundle.manifest.signature

    Args:
        folder: what ``coda-compile MODEL -o DIR`` wrote.
        target, precision: of the variant to run. By default the first in the bundle's order that this machine can run.
        threads: intra-op threads, 0 for what the manifest says.
        device: which of several GPUs to run on.
        memory_limit: bytes of a GPU that the model may take for itself, with what it computes; by default all.
        cuda_graph: run by CUDA graphs, of a target that has them: each shape of inputs is captured once, the first
            ``coda_targets.runtimes.cuda_graphs.MOST_GRAPHS`` of them, and then launched as a whole.

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
        self,
        folder: Path | str,
        *,
        target: str | None = None,
        precision: str | None = None,
        threads: int = 0,
        device: int = 0,
        memory_limit: int | None = None,
        cuda_graph: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.device, self.memory_limit, self.cuda_graph = device, memory_limit, cuda_graph
        self._version = version(self.folder)
        self.manifest: Manifest = read_manifest(self.folder)
        with self.reading():
            pass
        self._asked = variants_of(self.folder, self.manifest, target, precision)
        runs = (one for one in self._asked if not self.lacks(one))
        self.variant: VariantInfo = self._asked[0] if len(self._asked) == 1 else next(runs, self._asked[0])
        self.threads = threads
        self._adapters: dict[str, TaskAdapter] = {}
        self._codecs: dict[str | None, Codec] = {}
        self._making = RLock()
        self._session: ort.InferenceSession | None = None
        self._captured: CudaGraphs | None = None

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, variant={self.variant.name!r})"

    def lacks(self, variant: VariantInfo) -> str:
        """What this machine lacks to run a variant, in one sentence; empty where it can."""
        try:
            require_release(variant.minimum_onnxruntime)
            require_runtime(self._on_device(variant))
        except TargetError as error:
            return str(error)
        return ""

    def _on_device(self, variant: VariantInfo) -> Runtime:
        """What runs a variant where it was asked to.

        Raises:
            TargetError: there it cannot.
        """
        runtime = get_runtime(variant.target).on_device(self.device, self.memory_limit, cuda_graph=self.cuda_graph)
        if self.cuda_graph and (found := sorted(BY_VALUE & variant.operators.keys())):
            raise TargetError(
                f"the model cannot be captured as a CUDA graph, as shapes behind its {found[0]} depend on values: "
                "leave cuda_graph out, or compile it without packing rows"
            )
        return runtime

    @cached_property
    def runtime(self) -> Runtime:
        """How the variant runs, as this release knows its target, with the session that the manifest asks for.

        Raises:
            TargetError: this onnxruntime is older than the model needs, the target has no such device or no CUDA
                graphs, or of several variants that were asked for none runs here: of each what is missing. What else a
                single variant lacks is reported when it is loaded.
        """
        if len(self._asked) > 1 and self.lacks(self.variant):
            every = "; ".join(f"{one.name}: {self.lacks(one)}" for one in self._asked)
            raise TargetError(f"no variant of {self.folder} runs here: {every}")
        require_release(self.variant.minimum_onnxruntime)
        session = self.variant.session
        known = self._on_device(self.variant)
        first = tuple((name, session.options or options) for name, options in known.providers[:1])
        return replace(
            known,
            providers=(*first, *known.providers[1:]),
            kernels=session.kernels,
            graph_level=session.graph_level,
            threads=session.threads,
            profile=session.profile,
            cuda_graph=False,  # of the bundle's own runs alone; others feed their sessions by themselves
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
            CodaError: another bundle took the folder since this one was opened, a link leads to something else, or what
                should be a file is none.
        """
        try:
            for file in self.manifest.files:
                if file.path in names:
                    check_plain(self.folder / file.path)
                    if not inside(self.folder, file.path):
                        check_file(self.folder, file)
            yield
        except Exception:
            self._check_version()  # the better reason
            raise
        self._check_version()

    def _check_version(self) -> None:
        if version(self.folder) != self._version:
            raise BundleError(f"{self.folder} was replaced since it was opened: open it again")

    @property
    def session(self) -> ort.InferenceSession:
        """The onnxruntime session, made on first use, by one of several threads for all.

        Raises:
            TargetError: the runtime for the bundle's target is not installed, its device is absent or too small, or the
                model cannot run there.
            BundleError: onnxruntime cannot load the model, it is not what the manifest says, or it is another bundle's
                by now.
        """
        with self._making:
            if self._session is None:
                runtime = replace(self.runtime, cuda_graph=self.cuda_graph, built_of=self._built_of)
                with self.reading(*self.model_files):
                    session = open_session(self.model_path, runtime, threads=self.threads)
                    check_declared(session, self.manifest, self.model_path)
                self._session = session
            return self._session

    @property
    def _built_of(self) -> str:
        """SHA-256 of all that a variant computes with: what is built of it belongs to nothing else."""
        names = self.model_files
        hashes = (file.sha256 for file in self.manifest.files if file.path in names)
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def _graphs(self) -> CudaGraphs:
        with self._making:  # two would run at once
            if self._captured is None:
                names = [output.name for output in self.manifest.outputs]
                self._captured = CudaGraphs(self.session, names, self.device)
            return self._captured

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
        """The out-of-distribution score of a task, or of the only one.

        Raises:
            InputError: no such task.
        """
        return self.manifest.ood if task is None else self._task(task).ood

    def adapter(self, task: str | None = None) -> TaskAdapter | None:
        """What a task swaps in, read once; ``None`` for what the model itself holds.

        Raises:
            InputError: no such task.
            BundleError: its file is missing or damaged.
        """
        if task is None:
            return None
        with self._making:
            if task not in self._adapters:
                path = self._task(task).adapter
                with self.reading(path):
                    self._adapters[task] = TaskAdapter(self.folder / path)
            return self._adapters[task]

    def _task(self, name: str) -> TaskInfo:
        found = next((task for task in self.manifest.tasks if task.name == name), None)
        if found is None:
            known = f"use one of {', '.join(self.tasks)}" if self.tasks else "this bundle has but one"
            raise InputError(f"task {name!r} is unknown: {known}")
        return found

    def codec(self, task: str | None = None) -> "Codec":
        """From what people give to arrays, and from outputs to records, of a task or of the only one; opened once.

        Raises:
            BundleError: what it needs is missing from the bundle or damaged, as a tokenizer.
            InputError: no such task, or a modality that has no codec here.
            TargetError: a library that it needs is not installed.
        """
        from coda_targets.modalities import open_codec

        with self._making:
            if task not in self._codecs:
                self._codecs[task] = open_codec(self, task)
            return self._codecs[task]

    def predict(
        self, items: Sequence[Any], *, task: str | None = None, raw: bool = False, batch: int = 8
    ) -> list[dict[str, Any]]:
        """Predict for texts, or for what else the model's modality takes: the records of ``coda-compile run``.

            bundle.predict(["A slow start, then a triumph."])  # [{"label": "positive", "score": 0.98}]

        Needs the tokenizers library beside onnxruntime and numpy.

        Args:
            items: texts, or pairs of them as tuples for a model that compares two.
            task: one of ``tasks``; the first one where none is named.
            raw: logits of every label instead of scores.
            batch: items run at once, padded to the longest; results do not depend on it beyond float noise.

        Returns:
            One record an item, in order, of plain Python values: ``label`` and ``score``; ``labels``, best first, of
            multi-label models; ``tokens``; or ``embedding``. Beside a label ``ood_score`` and ``is_ood``, where the
            model has a score.

        Raises:
            InputError: one item instead of several, an item that the modality does not take, or no such task.
            BundleError: the bundle has no tokenizer.
            TargetError: as for ``run``, or the tokenizers library is not installed.
        """
        if isinstance(items, str):
            raise InputError("predict takes several texts, and was given one string: put it into a list")
        if batch < 1:
            raise InputError(f"batch is {batch}: give 1 or more")
        codec, given = self.codec(task), list(items)
        records: list[dict[str, Any]] = []
        for start in range(0, len(given), batch):
            encoded = codec.encode(given[start : start + batch])
            records += codec.decode(self.run(encoded.inputs, task=task), encoded, raw=raw)
        return records

    def run(self, inputs: Mapping[str, NDArray[Any]], *, task: str | None = None) -> Arrays:
        """Run the model.

        Args:
            task: one of ``tasks``; the first one where none is named.
            inputs: arrays by name, as ``manifest.signature`` describes them. Without a mask all is valid.

        Returns:
            Output arrays by name.

        Raises:
            InputError: an unknown task, a missing or unknown name, a wrong type or shape, a sequence longer than
                ``manifest.signature.max_length``, or ids that the model cannot look up.
            TargetError: as for ``session``, or the device has too little memory for this input, or the task cannot be
                swapped into CUDA graphs.
        """
        feed, adapter = self.prepare(inputs), self.adapter(task)
        names = [output.name for output in self.manifest.outputs]
        if not self.cuda_graph:
            return dict(zip(names, run_session(self.session, names, feed, adapter), strict=True))
        if adapter is not None:
            raise TargetError(
                f"CUDA graphs hold the task {self.tasks[0]!r} alone: open {self.folder} without cuda_graph to run "
                f"{task!r}"
            )
        with run_errors(self.session):
            return dict(zip(names, self._graphs().run(feed), strict=True))

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Run random inputs, so that later ones of these shapes find everything made that a first run makes.

        That is the session, its threads and memory, and with ``cuda_graph`` a graph a shape. Results are dropped.

        Args:
            shapes: batch and length of each.

        Raises:
            InputError: a shape that the model does not take, or more than there can be graphs.
            TargetError: as for ``run``.
        """
        asked = list(dict.fromkeys(shapes))
        if self.cuda_graph and len(asked) > MOST_GRAPHS:
            raise InputError(f"{len(asked)} shapes are to be captured and {MOST_GRAPHS} can be: warm up fewer")
        for batch, length in asked:
            if batch < 1 or length < 1:
                raise InputError(f"a batch of {batch} x {length} cannot be: both are at least 1")
            self.run(self.manifest.signature.random(batch, length))

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Check inputs, fill in what may be left out, and give them the model's types."""
        signature = self.manifest.signature
        feed = signature.prepare(inputs)
        if self.runtime.profile is not None:
            self.runtime.profile.check(*signature.shape(feed), signature.unit)
        return feed
