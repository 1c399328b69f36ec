"""JSON files of anyone's."""

import json
from pathlib import Path
from typing import Any


def json_object(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; ``None`` where it cannot be read or holds no object."""
    try:
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return plain if isinstance(plain, dict) else None
