"""JSON files that other programs write: settings of models, adapters and tokenizers, read as plain values."""

import json
from pathlib import Path
from typing import Any, TypeVar

from coda_ops.errors import CodaError

_LARGEST = 1 << 28  # bytes; the largest tokenizers have a tenth of that
_Value = TypeVar("_Value")


def json_value(path: Path, kind: type[_Value]) -> _Value | None:
    """What a JSON file holds; ``None`` where it cannot be read or holds something else than a ``kind``."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:  # pipes and devices may have no end
            return None
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return plain if isinstance(plain, kind) else None


def json_object(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; ``None`` where it cannot be read or holds no object."""
    return json_value(path, dict)


def read_json(path: Path, kind: type[_Value], expected: str, error: type[CodaError]) -> _Value:
    """What a JSON file holds.

    Args:
        kind: of the value, such as ``dict``.
        expected: what it should have said or what to do, for the message.
        error: to raise.

    Raises:
        CodaError: of class ``error``; it cannot be read, or holds something else.
    """
    plain = json_value(path, kind)
    if plain is None:
        raise error(f"{path} is {'damaged' if path.exists() else 'missing'}: {expected}")
    return plain
