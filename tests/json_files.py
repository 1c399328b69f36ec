"""JSON files that tests change."""

import json
from pathlib import Path
from typing import Any


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, or make it."""
    plain = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**plain, **changes}), "utf-8")
