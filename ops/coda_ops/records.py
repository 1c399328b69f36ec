"""JSON files that this project writes: frozen dataclasses, read back strictly by their annotations.

msgspec is imported where a file is read, so that importing this module costs nothing.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from coda_ops.errors import CodaError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Record = TypeVar("_Record")


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
    error: type[CodaError] = CodaError,
) -> _Record:
    """Read a dataclass from a JSON file.

    Every value must have its annotated type, also inside lists, mappings and other dataclasses; an integer serves as
    a float. Keys that a dataclass does not know are ignored, fields with a default may be absent.

    Args:
        kind: the dataclass.
        what: the file is, such as ``"benchmark result"``, for the message.
        remedy: what the user does about a file that cannot be read, such as ``"measure again"``.
        version: that its field ``schema_version`` must have; checked before anything else.
        error: to raise.

    Raises:
        CodaError: of class ``error``; names the file and the field.
    """
    import msgspec

    try:
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
                raise error(f"{path} has schema version {found!r}, this release reads a {what} of version {version}")
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as problem:
        reason, _, place = str(problem).partition(" - at `$")
        where = f" in {place.strip('.`')}" if place else ""
        raise error(f"{path} is damaged: {reason[:1].lower()}{reason[1:]}{where}; {remedy}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise error(f"{path} is no {what}: it is not JSON; {remedy}") from None
