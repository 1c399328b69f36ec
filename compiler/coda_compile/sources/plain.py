"""JSON files of other libraries, in which every key has a meaning."""

from pathlib import Path
from typing import Any

from coda_compile.errors import CompileError
from coda_models.errors import UnsupportedModelError
from coda_models.plain_json import json_value


def read_json(path: Path, kind: type, expected: str) -> Any:
    """What a JSON file holds.

    Args:
        kind: of the value, such as ``dict``.
        expected: what it should have said, for the message.

    Raises:
        CompileError: it cannot be read, or holds something else.
    """
    plain = json_value(path, kind)
    if plain is None:
        raise CompileError(f"{path} is {'damaged' if path.exists() else 'missing'}: {expected}")
    return plain


def only(path: Path, plain: dict[str, Any], *known: str) -> None:
    """Refuse a setting that nobody here gives a meaning to.

    Raises:
        UnsupportedModelError: names the first.
    """
    if unknown := sorted(set(plain) - set(known)):
        raise UnsupportedModelError(f"{path} sets {unknown[0]!r}, which has no compiled form: save the model without")
