"""Whether the files of a bundle agree with its coda.json in what they say, beside having its SHA-256."""

from pathlib import Path
from typing import Any

import onnx

from coda_compile.logits import logits_info
from coda_ops.errors import first_line
from coda_ops.foreign_json import read_json
from coda_targets import Bundle, BundleError
from coda_targets.manifest import CONFIG, MANIFEST, PACKAGE, LogitsInfo, Manifest
from coda_targets.weights import locations

_TASKS = {"ForSequenceClassification": "sequence-classification", "ForTokenClassification": "token-classification"}


def check_agreement(bundle: Bundle) -> None:
    """Compare labels, task, positions and what logits mean with config.json, where other libraries read them, variants
    with manifest.json, where onnxruntime does, and inputs and weights with each ONNX file.

    Raises:
        BundleError: what disagrees.
    """
    manifest, folder = bundle.manifest, bundle.folder
    config = read_json(folder / CONFIG, dict, "compile the model again", BundleError)
    named = config.get("id2label")
    if manifest.labels and isinstance(named, dict):
        labels = tuple(str(named.get(str(i))) for i in range(len(named)))
        if labels != manifest.labels:
            a, b = (", ".join(names) for names in (manifest.labels, labels))
            raise BundleError(
                f"{folder} is damaged: its manifest has the labels {a}, its config.json {b}; compile again"
            )
    head = str((config.get("architectures") or [""])[0])
    task = next((task for ending, task in _TASKS.items() if head.endswith(ending)), "feature-extraction")
    if manifest.layers and task != manifest.task:  # a model that came as an ONNX file has what its graph gives
        raise BundleError(
            f"{folder} is damaged: its manifest says {manifest.task}, its config.json {head}; compile the model again"
        )
    logits = logits_info(manifest.task, config, len(manifest.labels), folder / CONFIG)
    if logits != manifest.logits:
        raise BundleError(
            f"{folder} is damaged: its manifest takes logits for {_meaning(manifest.logits)}, its config.json for "
            f"{_meaning(logits)}; compile the model again"
        )
    positions = config.get("max_position_embeddings")
    longest = manifest.signature.max_length
    if isinstance(positions, int) and longest > positions:
        raise BundleError(
            f"{folder} is damaged: its manifest allows {longest} {manifest.signature.unit}, and its config.json says "
            f"that the model has {positions} positions; compile the model again"
        )
    _check_package(folder, manifest)
    for variant in manifest.variants:
        for name in variant.models.values():
            _check_model(folder, name, manifest)


def _check_model(folder: Path, name: str, manifest: Manifest) -> None:
    """Compare an ONNX file's inputs with the signature, and where its weights lie with the list of files."""
    try:
        proto = onnx.load(str(folder / name), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError shares no public base class across its versions
        raise BundleError(
            f"{folder / name} is missing or damaged: {first_line(error)}; compile the model again"
        ) from None
    constants = {tensor.name for tensor in proto.graph.initializer}
    taken = tuple(value.name for value in proto.graph.input if value.name not in constants)
    if taken != manifest.signature.names:
        a, b = ", ".join(manifest.signature.names), ", ".join(taken)
        raise BundleError(f"{folder} is damaged: its manifest has the inputs {a}, {name} has {b}; compile again")
    listed = {file.path for file in manifest.files}
    foreign = next((weights for weights in locations(proto) if weights not in listed), None)
    if foreign is not None:
        raise BundleError(f"{folder} is damaged: {name} has weights in {foreign}, which its manifest does not list")


def _check_package(folder: Path, manifest: Manifest) -> None:
    """Compare name, provider and files of every variant, and their order, with what onnxruntime reads."""
    components: Any = read_json(folder / PACKAGE, dict, "compile the model again", BundleError).get("components")
    ours = {
        part: [(one.name, next(iter(one.session.providers), None), one.models[part]) for one in manifest.variants]
        for part in manifest.variants[0].models
    }
    try:
        theirs = {part: [_listed(*item) for item in one["variants"].items()] for part, one in components.items()}
    except (AttributeError, KeyError, TypeError):
        theirs = {}
    if theirs != ours:
        raise BundleError(f"{folder} is damaged: its {PACKAGE} lists other variants than {MANIFEST}; compile again")


def _listed(name: str, variant: dict[str, Any]) -> tuple[str, str | None, str]:
    return name, variant.get("ep"), variant["executor_info"]["ort"]["model_file"]


def _meaning(logits: LogitsInfo | None) -> str:
    return "nothing" if logits is None else f"{logits.problem_type} by {logits.activation}"
