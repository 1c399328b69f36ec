"""What a classifier's logits mean, as the library says that its folder was written for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coda_compile.errors import CodaError, CompileError
from coda_compile.sources.classes import CROSS_ENCODER_KEYS, check_problem_type
from coda_compile.sources.prompts import ABOUT, check_prompts
from coda_ops.errors import shown
from coda_ops.foreign_json import read_json
from coda_targets.manifest import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LogitsInfo

_PIPELINES = {"sequence-classification": "text-classification", "token-classification": "token-classification"}
_CLASSES = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}
_ACTIVATIONS = {
    f"torch.nn.{module}{name}": activation
    for name, activation in _CLASSES.items()
    for module in ("", "modules.linear." if name == "Identity" else "modules.activation.")
}
_CROSS_ENCODER, _OLDER = CROSS_ENCODER_KEYS


def logits_info(task: str, config: Mapping[str, Any], labels: int, where: Path | str) -> LogitsInfo | None:
    """What logits mean; ``None`` where a model has none.

    Models that sentence-transformers' CrossEncoder wrote say their activation, or have its default. All others mean
    what transformers' pipelines take them for, which read no ``function_to_apply`` where there are labels.

    Args:
        task: as in ``CodaConfig``.
        config: of a config.json.
        labels: how many.
        where: the configuration comes from, for messages.

    Raises:
        CompileError: an activation or a problem type that is not known, or values for a pipeline of its own.
    """
    if not task.endswith("classification"):
        return None
    _check_specific(config, _PIPELINES[task], where)
    if task == "token-classification":
        return LogitsInfo("softmax", SINGLE_LABEL)
    named = check_problem_type(config.get("problem_type"), str(where))
    if _CROSS_ENCODER in config or config.get(_OLDER) is not None:
        activation = _of_cross_encoder(config, labels, where)
    elif named == REGRESSION:
        activation = "none"
    else:
        activation = "sigmoid" if named == MULTI_LABEL or labels == 1 else "softmax"
    apart = activation == "sigmoid" and labels > 1
    return LogitsInfo(activation, named or (MULTI_LABEL if apart else SINGLE_LABEL))


def _check_specific(config: Mapping[str, Any], pipeline: str, where: Path | str) -> None:
    """Refuse values that transformers' pipeline of a task puts over the others."""
    tasks = config.get("task_specific_params")
    own = tasks.get(pipeline) if isinstance(tasks, dict) else tasks
    if own:
        raise CompileError(
            f"{where} has task_specific_params {shown(own)}, which transformers' {pipeline} pipeline puts over the "
            "rest and a bundle does not: write them in the place of what they replace"
        )


def _of_cross_encoder(config: Mapping[str, Any], labels: int, where: Path | str) -> str:
    written = config.get(_CROSS_ENCODER, {})
    if not isinstance(written, dict):
        raise CompileError(f"{where} has {_CROSS_ENCODER!r}: {written!r}, which should be an object")
    path = written.get("activation_fn") if "activation_fn" in written else config.get(_OLDER)
    if path is None:
        return "sigmoid" if labels == 1 else "none"
    if not isinstance(path, str) or path not in _ACTIVATIONS:
        raise CompileError(
            f"{where} applies the activation {path!r} to its logits, which is none of {', '.join(_CLASSES)} of "
            "torch.nn: save the model with one of these"
        )
    return _ACTIVATIONS[path]


def cross_encoder_keys(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder's newer file says of its cross-encoder, as the key of config.json that older releases read.

    Raises:
        CompileError: a file that holds no object, or prompts that are none.
        UnsupportedModelError: a prompt that goes in front of every text.
    """
    path = folder / ABOUT  # which newer releases keep it in
    if not path.is_file():
        return {}
    plain = read_json(path, dict, "it should hold what sentence-transformers wrote", CompileError)
    named = plain.get("activation_fn")
    if named is None and plain.get("model_type") != "CrossEncoder":
        return {}
    check_prompts(path, plain)
    own = config.get(_CROSS_ENCODER, {})
    if not isinstance(own, dict):
        return {}
    return {_CROSS_ENCODER: own if named is None else {**own, "activation_fn": named}}


def check_one_label(what: str, task: str, logits: LogitsInfo | None, labels: tuple[str, ...]) -> None:
    """Refuse models that do not choose one label of several for a text.

    Args:
        what: would be wrong of them, for messages.

    Raises:
        CodaError: what the model does instead.
    """
    if task != "sequence-classification" or logits is None:
        raise CodaError(f"{what} sequence-classification, and this model does {task}")
    if len(labels) < 2:
        raise CodaError(
            f"{what} models that choose among labels, and this one has num_labels = 1: its score tells no classes apart"
        )
    if logits.problem_type != SINGLE_LABEL:
        raise CodaError(f"{what} problem_type {SINGLE_LABEL!r}, and this model's is {logits.problem_type!r}")
