"""Where a model came from, without paths of the machine it was made on."""

import re
from pathlib import PureWindowsPath
from typing import Any

_LOCAL = re.compile(r"[/~.\\]|[A-Za-z]:[/\\]|file:")
_PLACES = ("name_or_path", "_file", "_path", "_dir")


def public_name(source: str) -> str:
    """A hub name as it is, and of a folder the last part of its path."""
    hub = not _LOCAL.match(source) and "\\" not in source and source.count("/") < 2
    return source if hub else PureWindowsPath(source).name


def without_places(plain: Any) -> Any:
    """JSON values in which the keys that say where something lies keep a name, at any depth."""
    if isinstance(plain, list):
        return [without_places(value) for value in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        key: public_name(value)
        if isinstance(value, str) and str(key).endswith(_PLACES) and _LOCAL.match(value)
        else without_places(value)
        for key, value in plain.items()
    }
