"""What a classifier's logits mean: class names, and whether it is single-label, multi-label or regression."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coda_compile.errors import CompileError, OptionError
from coda_ops.errors import shown
from coda_ops.foreign_json import read_json
from coda_targets.manifest import PROBLEM_TYPES

if TYPE_CHECKING:
    from coda_models.model import CodaModel

# Keys of config.json that sentence-transformers writes, the second before its version 4.
CROSS_ENCODER_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
_SHOWN = 8  # numbers of classes in a message


def check_problem_type(problem_type: object, where: str) -> str | None:
    """One of ``PROBLEM_TYPES``, or ``None`` where nothing is said.

    Raises:
        CompileError: anything else.
    """
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise CompileError(
            f"problem_type {shown(problem_type)} of {where} is unknown: use one of {', '.join(PROBLEM_TYPES)}"
        )
    return None if problem_type is None else str(problem_type)


def name_classes(config: Any, names: Sequence[str]) -> None:
    """Give a configuration its labels, in order of the logits, in place."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}


def class_names(named: Any, number: int, where: Path | str) -> tuple[str, ...]:
    """Names of so many classes in order of the logits, of an ``id2label``.

    Raises:
        CompileError: it does not name each of them once, by its number.
    """
    try:
        by_number = sorted((int(i), str(name)) for i, name in named.items())
    except (AttributeError, TypeError, ValueError):
        raise CompileError(f"{where} is damaged: its id2label should name classes by their numbers") from None
    if (numbers := [i for i, _ in by_number]) != list(range(number)):
        some = ", ".join(map(str, numbers[:_SHOWN])) + (" and more" if len(numbers) > _SHOWN else "")
        raise CompileError(
            f"{where} names {f'classes {some}' if some else 'no classes'} where the logits have 0 to {number - 1}: let "
            "its id2label name each of these once, or put the model's own there"
        )
    return tuple(name for _, name in by_number)


def take_beside(config: Any, folder: Path) -> None:
    """Give a configuration what the whole model's config.json beside an adapter says of the classes, in place.

    Raises:
        CompileError: it is damaged, or speaks of another number of them.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    plain = read_json(path, dict, "it should be a Hugging Face configuration", CompileError)
    if (problem_type := check_problem_type(plain.get("problem_type"), str(path))) is not None:
        config.problem_type = problem_type
    if (named := plain.get("id2label")) is not None:
        name_classes(config, class_names(named, config.num_labels, path))
    config.update({key: plain[key] for key in CROSS_ENCODER_KEYS if key in plain})


def forget_cross_encoder(config: Any) -> None:
    """Drop what a configuration says of the scores of another head than the one that it has now, in place."""
    for key in CROSS_ENCODER_KEYS:
        vars(config).pop(key, None)


def set_classes(model: "CodaModel", problem_type: str | None, labels: Sequence[str] | None) -> None:
    """Give a model the meaning of its logits that its user names, in place.

    Raises:
        OptionError: the model is no such classifier, or has another number of labels.
    """
    check_asked(model.coda_config.task, int(model.hf_config.num_labels), problem_type, labels)
    if problem_type is not None:
        forget_cross_encoder(model.hf_config)
        model.hf_config.problem_type = problem_type
    if labels is not None:
        name_classes(model.hf_config, labels)


def check_asked(task: str, number: int, problem_type: str | None, labels: Sequence[str] | None) -> None:
    """Refuse a meaning that a classifier of so many labels cannot have.

    Raises:
        OptionError: says why.
    """
    if problem_type is not None and task != "sequence-classification":
        raise OptionError("{problem_type} is for sequence-classification, and this model does {task}", task=task)
    if labels is None:
        return
    if not task.endswith("classification"):
        raise OptionError("{labels} name the classes of a classifier, and this model does {task}", task=task)
    if twice := [name for i, name in enumerate(labels) if name in labels[:i]]:
        raise OptionError("{labels} names {twice!r} twice: give each class a name of its own", twice=twice[0])
    if len(labels) != number:
        raise OptionError(
            "{labels} names {named} classes but this model tells {number} apart: name each of them",
            named=len(labels),
            number=number,
        )
