"""JSON files that tests change."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, or make it."""
    plain = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**plain, **changes}), "utf-8")


class _Missing:
    def __repr__(self) -> str:
        return "left out"


_LEFT_OUT = _Missing()
_ODD: tuple[Any, ...] = (
    *(_LEFT_OUT, None, True, False, -1, 0, 2, 3, 0.5, 1e308, 2**63, 10**12, 10**400, float("nan"), float("inf")),
    *("", "x", "nan", "a\0b", "\ud800", "../../etc/passwd"),
    *([], [None], [[]], [10**12], {}, {"a": None}, {"": {}}),
)
_MOST_KEYS, _MOST_ITEMS, _DEEPEST = 40, 2, 5  # of a vocabulary, a list and a tree that are walked


def odd_changes(folder: Path) -> list[tuple[Path, tuple[str | int, ...], Any]]:
    """For each value in a folder's JSON files, what others it might have: file, keys on the way, and the value."""
    return [
        (file, keys, odd)
        for file in sorted(folder.rglob("*.json"))
        for keys in _places(json.loads(file.read_text("utf-8")))
        for odd in _ODD
    ]


def change(text: str, keys: tuple[str | int, ...], odd: Any) -> str:
    """JSON text with one value replaced, or left out."""
    plain = json.loads(text)
    *way, last = keys
    at = plain
    for key in way:
        at = at[key]
    if odd is _LEFT_OUT:
        del at[last]
    else:
        at[last] = odd
    return json.dumps(plain)


def _places(plain: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The keys that lead to each value."""
    inside: list[tuple[str | int, Any]] = []
    if len(before) < _DEEPEST and isinstance(plain, dict):
        inside = list(plain.items())[:_MOST_KEYS]
    elif len(before) < _DEEPEST and isinstance(plain, list):
        inside = list(enumerate(plain))[:_MOST_ITEMS]
    for key, value in inside:
        yield (*before, key)
        yield from _places(value, (*before, key))
