"""manifest.json: what a bundle holds, and the SHA-256 that proves it."""

import hashlib
import json
import os
import re
from collections.abc import Container
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args, get_origin

from coda_targets.errors import BundleError
from coda_targets.signature import Signature

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
CONFIG = "config.json"
GRAPH_LEVELS = ("disable", "basic", "extended", "all")
ACTIVATIONS = ("softmax", "sigmoid", "none")
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_MOST_THREADS = 1024
_RATIO = re.compile(r"[1-9]\d*(/[1-9]\d*)?")
_RELEASE = re.compile(r"\d{1,9}(\.\d{1,9})*")


@dataclass(frozen=True)
class TensorInfo:
    """Name, numpy type and shape of a graph output; text in a shape names a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class LayerInfo:
    """How one layer routes.

    Attributes:
        reduction: r as a ratio in text; ``"1"`` for a dense layer.
        attention: ``k_to_k`` or ``k_to_all``.
        bottleneck: width of the adapter, of several together, 0 for none.
        slots: K at the longest input.
    """

    reduction: str
    attention: str
    bottleneck: int
    slots: int


@dataclass(frozen=True)
class SessionInfo:
    """How a session of onnxruntime is made for the bundle; programs that do not use ``Bundle`` do the same.

    Attributes:
        providers: execution providers, best first.
        graph_level: how far onnxruntime optimises, one of ``GRAPH_LEVELS``.
        threads: intra-op threads, 0 for onnxruntime's own choice.
        native: whether native kernels serve it where they are installed.
        options: of the first provider, by the names that it gives them.
    """

    providers: tuple[str, ...]
    graph_level: str
    threads: int
    native: bool
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LogitsInfo:
    """What a classifier's logits mean.

    Attributes:
        activation: what makes scores of them, one of ``ACTIVATIONS``.
        problem_type: one of ``PROBLEM_TYPES``, transformers' words: one of the labels is right, each is right or wrong
            by itself, or each names a number.
    """

    activation: str
    problem_type: str


@dataclass(frozen=True)
class OodInfo:
    """How texts unlike the known ones are told.

    Attributes:
        method: behind the output ``ood_score``.
        threshold: above which ``is_ood`` is true.
        kept: the share of known texts that it keeps in.
    """

    method: str
    threshold: float
    kept: float


@dataclass(frozen=True)
class TaskInfo:
    """One of several tasks on the bundle's backbone.

    Attributes:
        adapter: path of its file, relative to the manifest.
        labels: class names in order of its logits.
        logits: what they mean; of classifiers.
        ood: where it scores how far out a text is.
    """

    name: str
    adapter: str
    labels: tuple[str, ...]
    logits: LogitsInfo | None = None
    ood: OodInfo | None = None


@dataclass(frozen=True)
class FileInfo:
    """One file of the bundle, its path relative to the manifest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a program needs to know of a bundle without opening its model.

    Attributes:
        layers: bottom first; none of a model that came as an ONNX file, as a graph does not tell where they begin.
        coda_config: the CodaConfig that the model was compiled with, as plain values; empty without layers.
        width, feed_forward: d and f of the backbone's layers; 0 without layers.
        signature: what the model takes. The tokenizer truncates to its ``max_length``, the smallest of what positions,
            tokenizer_config.json and sentence_bert_config.json of the model allowed.
        labels: class names in order of the logits; empty without a classifier.
        logits: what they mean; of classifiers.
        model_sha256: of the tensors of the model that it was compiled from, whatever r, precision and target.
        operators: how often each operator stands in the graph, ``domain::name`` outside the default domain.
        ood: of models that score how far out a text is.
        tasks: where there are several; the first is what ``model.onnx`` itself holds, and ``labels``, ``logits`` and
            ``model_sha256`` are its own.
        minimum_onnxruntime: the first release that knows this opset and IR version, and runs its operators rightly.
    """

    task: str
    architecture: str
    target: str
    precision: str
    versions: dict[str, str]
    opset: dict[str, int]
    ir_version: int
    minimum_onnxruntime: str
    operators: dict[str, int]
    signature: Signature
    outputs: tuple[TensorInfo, ...]
    width: int
    feed_forward: int
    labels: tuple[str, ...]
    layers: tuple[LayerInfo, ...]
    coda_config: dict[str, Any]
    session: SessionInfo
    model_sha256: str
    logits: LogitsInfo | None = None
    ood: OodInfo | None = None
    tasks: tuple[TaskInfo, ...] = ()
    files: tuple[FileInfo, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def dump(self) -> str:
        """Stable JSON text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check the form of a bundle's manifest.

    Raises:
        BundleError: no bundle, cut off, of another version, or with a path that leaves the folder.
    """
    path = folder / MANIFEST
    try:
        plain = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}; make one with coda-compile MODEL -o DIR"
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file, not a bundle folder") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is damaged: it is not JSON; compile the model again") from None
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(f"{path} has schema version {version!r}, this release reads {SCHEMA_VERSION}")
    try:
        manifest = Manifest(
            **{
                **{field.name: plain[field.name] for field in fields(Manifest)},
                "signature": Signature.from_plain(plain["signature"]),
                "outputs": tuple(_tensor(item) for item in plain["outputs"]),
                "layers": tuple(LayerInfo(**item) for item in plain["layers"]),
                "session": _session(plain["session"]),
                "logits": _logits(plain["logits"]),
                "ood": _ood(plain["ood"]),
                "tasks": tuple(_task(item) for item in plain["tasks"]),
                "files": tuple(FileInfo(**item) for item in plain["files"]),
                "labels": tuple(plain["labels"]),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}; compile the model again") from None
    bad = [field.name for field in fields(Manifest) if not fits(getattr(manifest, field.name), field.type)]
    bad = bad or [field for field, makes_sense in _senses(manifest).items() if not makes_sense]
    if bad:
        raise BundleError(f"{path} is damaged: its field {bad[0]!r} makes no sense; compile the model again")
    for name in (*(file.path for file in manifest.files), *(task.adapter for task in manifest.tasks)):
        _path(folder, name)
    listed = {file.path for file in manifest.files}
    needed = (MODEL, CONFIG, *(task.adapter for task in manifest.tasks))
    absent = next((name for name in needed if name not in listed), None)
    if absent is not None:
        raise BundleError(f"{path} is damaged: it does not list {absent}; compile the model again")
    return manifest


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, to be compared; none where there are none."""
    found = _RELEASE.match(version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def _senses(manifest: Manifest) -> dict[str, bool]:
    """Which values are what every reader counts on."""
    known = bool(manifest.layers)
    return {
        "opset": "" in manifest.opset,
        "minimum_onnxruntime": _RELEASE.fullmatch(manifest.minimum_onnxruntime) is not None,
        "layers": known == bool(manifest.coda_config)
        and all(_RATIO.fullmatch(layer.reduction) for layer in manifest.layers),
        "width": known == (manifest.width > 0),
        "feed_forward": known == (manifest.feed_forward > 0),
        "logits": _means(manifest.labels, manifest.logits),
        "tasks": all(_means(task.labels, task.logits) for task in manifest.tasks),
        "session": manifest.session.graph_level in GRAPH_LEVELS and 0 <= manifest.session.threads <= _MOST_THREADS,
    }


def _means(labels: tuple[str, ...], logits: LogitsInfo | None) -> bool:
    """Whether what is said of logits is known, and is said where there are any."""
    if logits is None:
        return not labels
    return bool(labels) and logits.activation in ACTIVATIONS and logits.problem_type in PROBLEM_TYPES


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of an annotated type."""
    inner = get_args(kind)
    if kind is Any:
        return True
    if kind is float:  # JSON may write a whole one as an integer
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if inner:
        return any(fits(value, one) for one in inner)
    if is_dataclass(value):
        return isinstance(value, kind) and all(fits(getattr(value, f.name), f.type) for f in fields(value))
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _tensor(item: dict[str, Any]) -> TensorInfo:
    return TensorInfo(item["name"], item["dtype"], tuple(item["shape"]))


def _session(item: dict[str, Any]) -> SessionInfo:
    return SessionInfo(**{**item, "providers": tuple(item["providers"])})


def _logits(item: dict[str, Any] | None) -> LogitsInfo | None:
    return None if item is None else LogitsInfo(**item)


def _ood(item: dict[str, Any] | None) -> OodInfo | None:
    return None if item is None else OodInfo(**item)


def _task(item: dict[str, Any]) -> TaskInfo:
    read = {"labels": tuple(item["labels"]), "logits": _logits(item["logits"]), "ood": _ood(item["ood"])}
    return TaskInfo(**{**item, **read})


def _path(folder: Path, name: str) -> Path:
    """The file that a manifest names, in the bundle or a link there: its SHA-256 says what it may lead to."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise BundleError(f"{folder / MANIFEST} names {name!r}, which lies outside the bundle: do not use this bundle")
    return folder / pure


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_below(folder: Path, followed: Container[str] = ()) -> list[str]:
    """Every file below a folder but the manifest itself, sorted; links to folders count as files, but for some."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        names = {name: Path(place, name).relative_to(folder).as_posix() for name in (*folders, *files)}
        links = [name for name in folders if Path(place, name).is_symlink() and names[name] not in followed]
        folders[:] = [name for name in folders if name not in links]
        found += [names[name] for name in (*files, *links)]
    return sorted(name for name in found if name != MANIFEST)


def list_files(folder: Path) -> tuple[FileInfo, ...]:
    """What a manifest says of every file below a folder but itself."""
    paths = {name: folder / name for name in files_below(folder)}
    return tuple(FileInfo(name, path.stat().st_size, hash_file(path)) for name, path in paths.items())


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its recorded size and SHA-256.

    Raises:
        BundleError: the first file that is missing, changed or cut off, or that readers may take for a part of it.
    """
    for file in manifest.files:
        check_file(folder, file)
    foreign = next((name for name in unlisted(folder, manifest) if not _of_no_reader(name)), None)
    if foreign is not None:
        raise BundleError(
            f"{folder / foreign} is not in the manifest, so nothing proves it: move it away, or compile the model again"
        )


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """What lies in a bundle's folder beside the bundle, sorted."""
    listed = {file.path for file in manifest.files}
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}  # Kubernetes links them
    return [name for name in files_below(folder, folders) if name not in listed]


def _of_no_reader(name: str) -> bool:
    """Whether no program takes a file for a part of the model: what hubs, git and Kubernetes put beside it."""
    path = PurePosixPath(name)
    return any(part.startswith(".") for part in path.parts) or path.suffix == ".md" or path.stem == "LICENSE"


def check_file(folder: Path, file: FileInfo) -> None:
    """Compare a file with its recorded size and SHA-256.

    Raises:
        BundleError: it is missing, changed or cut off.
    """
    path = _path(folder, file.path)
    if not path.is_file():
        raise BundleError(f"{path} is missing: compile the model again")
    size = path.stat().st_size
    if size != file.bytes:
        raise BundleError(f"{path} is damaged: {size} bytes where the manifest says {file.bytes}; compile again")
    if hash_file(path) != file.sha256:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the manifest's; compile the model again")
