"""Our own JSON files: what is written comes back, and what is damaged is refused by file and field."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coda_ops.errors import CodaError
from coda_ops.foreign_json import json_object
from coda_ops.records import added, read_record, record_json


@dataclass(frozen=True)
class Axis:
    size: int | str
    scale: float = 1.0


@dataclass(frozen=True)
class Shape:
    axes: tuple[Axis, ...]
    counts: dict[str, int]
    note: str | None = None
    schema_version: int = 3


class ShapeError(CodaError):
    pass


def read(path: Path) -> Shape:
    return read_record(path, Shape, what="shape", remedy="draw it again", version=3, error=ShapeError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shape.json"


def test_what_is_written_comes_back(path: Path):
    shape = Shape((Axis("batch"), Axis(3, 0.5)), {"größe": 2})
    path.write_text(record_json(shape), "utf-8")
    assert read(path) == shape
    assert "größe" in path.read_text("utf-8")


def test_an_integer_serves_as_a_float_and_newer_keys_are_ignored(path: Path):
    path.write_text('{"axes": [{"size": 1, "scale": 2, "colour": "red"}], "counts": {}, "schema_version": 3}')
    (axis,) = read(path).axes
    assert (axis, type(axis.scale)) == (Axis(1, 2.0), float)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"axes": [{"size": 1}, {"size": None}]}, "expected `int | str`, got `null` in axes[1].size; draw it again"),
        ({"axes": [{}]}, "object missing required field `size` in axes[0]"),
        ({"axes": {}}, "expected `array`, got `object` in axes"),
        ({"counts": {"a": True}}, "expected `int`, got `bool` in counts"),
        ({"counts": {"a": 1.5}}, "expected `int`, got `float` in counts"),
        ({"note": 4}, "expected `str | null`, got `int` in note"),
        ({"schema_version": 2}, "has schema version 2, this release reads a shape of version 3"),
        ({"schema_version": "3"}, "has schema version '3', this release"),
    ],
)
def test_values_of_other_types_are_named(path: Path, changes: dict[str, object], sentence: str):
    path.write_text(json.dumps({**json.loads(record_json(Shape((), {}))), **changes}))
    with pytest.raises(ShapeError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


@dataclass(frozen=True)
class Grown:
    axes: tuple[Axis, ...]
    by_name: dict[str, Axis]
    more: int = added(0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, ""),
        ({"more": 2}, ""),
        ({"fewer": 2}, "unknown field `fewer`; draw it again"),
        ({"axes": [{"size": 1}]}, "object missing field `scale` in axes[0]; draw it again"),
        ({"axes": [{"size": 1, "scale": 1, "colour": 1}]}, "unknown field `colour` in axes[0]; draw it again"),
        ({"by_name": None}, "object missing required field `by_name`; draw it again"),
    ],
)
def test_a_closed_file_may_lack_what_was_added_and_nothing_else(path: Path, changes: dict[str, Any], sentence: str):
    plain = {"axes": [{"size": 1, "scale": 1}], "by_name": {"a": {"size": 2, "scale": 2.0}}, **changes}
    path.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))
    if not sentence:
        read = read_record(path, Grown, what="shape", remedy="draw it again", closed=True)
        assert read == Grown((Axis(1),), {"a": Axis(2, 2.0)}, changes.get("more", 0))
        return
    with pytest.raises(CodaError, match=re.escape(sentence)):
        read_record(path, Grown, what="shape", remedy="draw it again", closed=True)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"axes": NaN}', b'"\xff"', b"[" * 100_000, b'{"axes": [], "counts": {}} {}']
)
def test_what_is_not_json_is_refused(path: Path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(ShapeError, match="is no shape: it is not JSON; draw it again"):
        read(path)


def test_files_that_cannot_be_read_are_named(path: Path):
    with pytest.raises(ShapeError, match="shape.json does not exist: draw it again"):
        read(path)
    with pytest.raises(ShapeError, match="cannot be read: Is a directory|cannot be read: Permission denied"):
        read(path.parent)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(path: Path):
    os.mkfifo(path)
    with pytest.raises(ShapeError, match="shape.json is no file: draw it again"):
        read(path)
    assert json_object(path) is None


def test_the_library_is_imported_where_a_file_is_read():
    code = "import sys, coda_ops.records; sys.exit('msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
