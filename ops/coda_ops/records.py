"""JSON files that this project writes: frozen dataclasses, read back strictly by their annotations.

msgspec is imported where a file is read, so that importing this module costs nothing.
"""

import json
from dataclasses import asdict, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from coda_ops.errors import CodaError, cut, shown
from coda_ops.files import may_have_no_end

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Record = TypeVar("_Record", bound="DataclassInstance")
_ADDED = "added"


def added(default: Any) -> Any:
    """A field that files of earlier releases do not hold: a closed file may lack it, and then means the default."""
    return field(default=default, metadata={_ADDED: True})


def record_json(record: "DataclassInstance") -> str:
    """A dataclass as JSON for people: the same record gives the same bytes."""
    return json.dumps(asdict(record), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_record(
    path: Path,
    kind: type[_Record],
    *,
    what: str,
    remedy: str,
    version: int | None = None,
    closed: bool = False,
    error: type[CodaError] = CodaError,
) -> _Record:
    """Read a dataclass from a JSON file.

    Every value must have its annotated type, also inside lists, mappings and other dataclasses; an integer serves as
    a float. Keys that a dataclass does not know are ignored and fields with a default may be absent, but in a closed
    file.

    Args:
        kind: the dataclass.
        what: the file is, such as ``"benchmark result"``, for the message.
        remedy: what the user does about a file that cannot be read, such as ``"measure again"``.
        version: that its field ``schema_version`` must have; checked before anything else.
        closed: whether the file has to hold every field of its dataclasses but those ``added``, and nothing else.
        error: to raise.

    Raises:
        CodaError: of class ``error``; names the file and the field.
    """
    import msgspec

    try:
        if may_have_no_end(path):
            raise error(f"{path} is no file: {remedy}")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path} does not exist: {remedy}") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    try:
        if version is not None:
            found = msgspec.json.decode(content)
            found = found.get("schema_version") if isinstance(found, dict) else None
            if found != version or isinstance(found, bool):
                raise error(
                    f"{path} has schema version {shown(found)}, this release reads a {what} of version {version}"
                )
        record = msgspec.json.decode(content, type=kind)
        if closed:
            _require_same_keys(msgspec.json.decode(content), record, f"{path} is damaged", remedy, error)
        return record
    except msgspec.ValidationError as problem:
        raise error(f"{path} is damaged: {_reason(problem)}; {remedy}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise error(f"{path} is no {what}: it is not JSON; {remedy}") from None


def as_record(plain: Any, kind: type[_Record], *, what: str, error: type[CodaError] = CodaError) -> _Record:
    """A dataclass from plain values that somebody else has read, each of its annotated type.

    Args:
        what: they are, for the message.
        error: to raise.

    Raises:
        CodaError: of class ``error``; says which value is wrong.
    """
    import msgspec

    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as problem:
        raise error(f"{what} cannot be read: {_reason(problem)}") from None


def _reason(problem: Exception) -> str:
    """What msgspec found wrong, and where."""
    reason, _, place = str(problem).partition(" - at `$")
    where = f" in {place.strip('.`')}" if place else ""
    return f"{reason[:1].lower()}{cut(reason[1:])}{where}"


def _require_same_keys(plain: Any, known: Any, damaged: str, remedy: str, error: type[CodaError], at: str = "") -> None:
    """Compare the keys of what a file holds with the fields of the record that was read from it."""
    if is_dataclass(known):
        where = f" in {at}" if at else ""
        optional = {one.name: bool(one.metadata.get(_ADDED)) for one in fields(known)}
        for name in sorted(plain.keys() ^ optional.keys()):
            if not optional.get(name):
                what = f"unknown field `{name}`" if name in plain else f"object missing field `{name}`"
                raise error(f"{damaged}: {what}{where}; {remedy}")
        for name, value in plain.items():
            _require_same_keys(value, getattr(known, name), damaged, remedy, error, f"{at}.{name}" if at else name)
    elif isinstance(known, (list, tuple)):
        for i, (value, other) in enumerate(zip(plain, known, strict=True)):
            _require_same_keys(value, other, damaged, remedy, error, f"{at}[{i}]")
