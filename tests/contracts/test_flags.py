"""Facts that stand in one place: a second place that learns one fails here."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from coda_compile import CompileOptions
from coda_compile.cli.main import flag

ROOT = Path(__file__).parents[2]
LIBRARY = [
    path
    for folder in ("ops/coda_ops", "models/coda_models", "compiler/coda_compile")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "cli" not in path.parts
]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_line_alone_knows_flags(path: Path):
    """Messages of the library name options by their fields; only a whole command may be quoted."""
    flags = "|".join(re.escape(flag(field.name)) for field in fields(CompileOptions))
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "coda-compile " not in node.value:
            assert not re.search(rf"(?<![\w-])({flags})(?![\w-])", node.value), f"line {node.lineno}: {node.value}"
