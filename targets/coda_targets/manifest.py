"""coda.json: what a bundle holds, and the SHA-256 that proves it.

A bundle is a model package of ONNX Runtime as well, whose own ``manifest.json`` says less. Every ONNX file lies at the
root under a name of its own, ``model.onnx`` the one that libraries open which know nothing of variants, and beside them
one file of the weights that several share. Variants have no folders: onnxruntime reads no weights from outside of a
model's folder, so that folders could share none, and optimum opens the wrong file, or warns, where two are called
``model.onnx``.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from coda_ops import native
from coda_ops.records import added, read_record, record_json
from coda_targets.errors import BundleError, TargetError
from coda_targets.fidelity import Fidelity
from coda_targets.profile import Profile
from coda_targets.proofs import ProofInfo, ran_on
from coda_targets.signature import Signature

SCHEMA_VERSION = 1
MANIFEST = "coda.json"
PACKAGE = "manifest.json"  # ONNX Runtime's
MODEL = "model.onnx"
WEIGHTS = "weights.data"
PART = "model"  # of models that are one graph
CONFIG = "config.json"
GRAPH_LEVELS = ("disable", "basic", "extended", "all")
ACTIVATIONS = ("softmax", "sigmoid", "none")
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
MOST_THREADS = 1024  # of a session
_OUTPUTS = {  # of each task the one that answers, and how many axes it has
    "sequence-classification": ("logits", 2),
    "token-classification": ("logits", 3),
    "feature-extraction": ("sentence_embedding", 2),
}
_MOST_PROMPT = 65536  # learned tokens
_REMEDY = "compile the model again"
_RATIO = re.compile(r"[1-9]\d*(/[1-9]\d*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
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
        slots: K at the longest input, learned tokens in front among its tokens.
        stand_in: rank of the stand-in, for tokens that are not routed; 0 for none.
        key_value_rank: of their keys and values in k_to_all; 0 for exact ones.
        prefix, prompt: learned tokens that every computed one attends to, and such in front of every sequence.
    """

    reduction: str
    attention: str
    bottleneck: int
    slots: int
    stand_in: int = added(0)
    key_value_rank: int = added(0)
    prefix: int = added(0)
    prompt: int = added(0)


@dataclass(frozen=True)
class SessionInfo:
    """How a session of onnxruntime is made for a variant; programs that do not use ``Bundle`` do the same.

    Attributes:
        providers: execution providers, best first.
        graph_level: how far onnxruntime optimises, one of ``GRAPH_LEVELS``.
        threads: intra-op threads, 0 for onnxruntime's own choice.
        kernels: library of native kernels that serves it where it is installed: ``cpu``, ``cuda``; empty for none.
        options: of the first provider, by the names that it gives them.
        profile: sizes of input that it is compiled for; ``None`` for any.
    """

    providers: tuple[str, ...]
    graph_level: str
    threads: int
    kernels: str
    options: dict[str, str] = field(default_factory=dict)
    profile: Profile | None = None


@dataclass(frozen=True)
class VariantInfo:
    """One compiled form of the model: for a target, in a precision.

    Attributes:
        name: in ``manifest.json`` too: ``cpu``, ``cpu-int8``.
        target, precision: as on the command line.
        models: ONNX file of each part.
        external_bytes: of its weights, how much lies beside its files, where other variants may share it.
        minimum_onnxruntime: the first release that knows this opset and IR version, and runs its operators rightly.
        operators: how often each operator stands in the graph, ``domain::name`` outside the default domain.
        proofs: what was shown where, when it was compiled.
    """

    name: str
    target: str
    precision: str
    models: dict[str, str]
    external_bytes: int
    opset: dict[str, int]
    ir_version: int
    minimum_onnxruntime: str
    operators: dict[str, int]
    session: SessionInfo
    proofs: tuple[ProofInfo, ...] = ()

    @property
    def ran(self) -> bool:
        """Whether it ran on its own execution provider when it was compiled, see ``ran_on``."""
        return ran_on(self.proofs, self.session.providers)


@dataclass(frozen=True)
class LogitsInfo:
    """What a classifier's logits mean.

    Attributes:
        activation: what makes scores of them, one of ``ACTIVATIONS``.
        problem_type: one of ``PROBLEM_TYPES``: one label is right, each is right or wrong, or each names a number.
    """

    activation: str
    problem_type: str


@dataclass(frozen=True)
class OodInfo:
    """The out-of-distribution score.

    Attributes:
        method: behind the output ``ood_score``.
        threshold: above which ``is_ood`` is true.
        kept: the share of in-distribution data below the threshold.
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
        variants: in the order of preference; a machine takes the first that it can run.
        outputs: of every variant.
        layers: bottom first; none of a model that came as an ONNX file, as a graph does not show where they begin.
        coda_config: the CodaConfig that the model was compiled with, as plain values; empty without layers.
        width, feed_forward: d and f of the backbone's layers; 0 without layers.
        signature: what the model takes. The tokenizer truncates to its ``max_length``, the smallest of what positions,
            tokenizer_config.json and sentence_bert_config.json of the model allowed.
        labels: class names in order of the logits; empty without a classifier.
        logits: what they mean; of classifiers.
        model_sha256: of the tensors of the model that it was compiled from, whatever r, precision and target.
        ood: of models that score how far out a text is.
        fidelity: what was measured of the model in float32 when it was routed, before it was compiled.
        tasks: where there are several; the first is what ``model.onnx`` itself holds, and ``labels``, ``logits`` and
            ``model_sha256`` are its own.
    """

    task: str
    architecture: str
    versions: dict[str, str]
    variants: tuple[VariantInfo, ...]
    signature: Signature
    outputs: tuple[TensorInfo, ...]
    width: int
    feed_forward: int
    labels: tuple[str, ...]
    layers: tuple[LayerInfo, ...]
    coda_config: dict[str, Any]
    model_sha256: str
    logits: LogitsInfo | None = None
    ood: OodInfo | None = None
    fidelity: Fidelity | None = None
    tasks: tuple[TaskInfo, ...] = ()
    files: tuple[FileInfo, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def dump(self) -> str:
        """Stable JSON text."""
        return record_json(self)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the form of a bundle's manifest.

    Raises:
        BundleError: no bundle, cut off, of another version, or with a path that leaves the folder.
    """
    path = folder / MANIFEST
    if folder.is_file():
        raise BundleError(f"{folder} is a file, not a bundle folder")
    if not path.exists():
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}; make one with coda-compile MODEL -o DIR")
    manifest = read_record(
        path,
        Manifest,
        what="manifest of a bundle",
        remedy=_REMEDY,
        version=SCHEMA_VERSION,
        closed=True,
        error=BundleError,
    )
    bad = next((field for field, makes_sense in _senses(manifest).items() if not makes_sense), None)
    if bad is not None:
        raise BundleError(f"{path} is damaged: its field {bad!r} makes no sense; {_REMEDY}")
    models = [name for variant in manifest.variants for name in variant.models.values()]
    adapters = [task.adapter for task in manifest.tasks]
    for name in (*(file.path for file in manifest.files), *models, *adapters):
        path_in(folder, name)
    listed = {file.path for file in manifest.files}
    absent = next((name for name in (MODEL, CONFIG, *models, *adapters) if name not in listed), None)
    if absent is not None:
        raise BundleError(f"{path} is damaged: it does not list {absent}; {_REMEDY}")
    return manifest


def variants_of(folder: Path, manifest: Manifest, target: str | None, precision: str | None) -> tuple[VariantInfo, ...]:
    """The variants of a target, a precision, or both, in their order.

    Raises:
        TargetError: none; the message lists those there are.
    """
    found = tuple(
        one for one in manifest.variants if target in (None, one.target) and precision in (None, one.precision)
    )
    if not found:
        asked = " in ".join(word for word in (target and f"for {target}", precision) if word)
        there = ", ".join(f"{one.target} {one.precision}" for one in manifest.variants)
        raise TargetError(f"{folder} has no variant {asked}: it has {there}")
    return found


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, to be compared; none where there are none."""
    found = _RELEASE.match(version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def _senses(manifest: Manifest) -> dict[str, bool]:
    """Which values are what every reader counts on."""
    known = bool(manifest.layers)
    names = [variant.name for variant in manifest.variants]
    kinds = [(variant.target, variant.precision) for variant in manifest.variants]
    models = [name for variant in manifest.variants for name in variant.models.values()]
    parts = [set(variant.models) for variant in manifest.variants]
    return {
        "variants": bool(names)
        and all(map(_NAME.fullmatch, names))
        and all(len(set(each)) == len(each) for each in (names, kinds, models)),
        "models": all(each == parts[0] and PART in each for each in parts),
        "external_bytes": all(variant.external_bytes >= 0 for variant in manifest.variants),
        "opset": all("" in variant.opset for variant in manifest.variants),
        "minimum_onnxruntime": all(_RELEASE.fullmatch(variant.minimum_onnxruntime) for variant in manifest.variants),
        "session": all(_opens(variant.session) for variant in manifest.variants),
        "layers": known == bool(manifest.coda_config)
        and all(_RATIO.fullmatch(one.reduction) and 0 <= one.prompt <= _MOST_PROMPT for one in manifest.layers),
        "width": known == (manifest.width > 0),
        "feed_forward": known == (manifest.feed_forward > 0),
        "outputs": _gives(manifest),
        "logits": _means(manifest.labels, manifest.logits),
        "tasks": all(_means(task.labels, task.logits) for task in manifest.tasks),
    }


def _opens(session: SessionInfo) -> bool:
    known = session.graph_level in GRAPH_LEVELS and session.kernels in ("", *native.LIBRARIES)
    known = known and (session.profile is None or session.profile.rises)
    return known and 0 <= session.threads <= MOST_THREADS


def _gives(manifest: Manifest) -> bool:
    """Whether there is the output of the task, with its axes, and a score with its flag where texts are scored."""
    axes = {one.name: len(one.shape) for one in manifest.outputs}
    name, rank = _OUTPUTS.get(manifest.task, ("", 0))
    scored = {"ood_score", "is_ood"} & axes.keys()
    return axes.get(name) == rank and len(scored) == (0 if manifest.ood is None else 2)


def _means(labels: tuple[str, ...], logits: LogitsInfo | None) -> bool:
    """Whether what is said of logits is known, and is said where there are any."""
    if logits is None:
        return not labels
    return bool(labels) and logits.activation in ACTIVATIONS and logits.problem_type in PROBLEM_TYPES


def path_in(folder: Path, name: str) -> Path:
    """The file that a manifest names, in the bundle or a link there: its SHA-256 says what it may lead to."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise BundleError(f"{folder / MANIFEST} names {name!r}, which lies outside the bundle: do not use this bundle")
    return folder / pure
