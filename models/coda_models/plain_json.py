"""JSON files of anyone's."""

import json
from pathlib import Path
from typing import Any


def json_value(path: Path, kind: type) -> Any:
    """What a JSON file holds; ``None`` where it cannot be read or holds something else than a ``kind``."""
    try:
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return plain if isinstance(plain, kind) else None


def json_object(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; ``None`` where it cannot be read or holds no object."""
    plain: dict[str, Any] | None = json_value(path, dict)
    return plain
