"""Every library that the packages import is declared in pyproject.toml, in the extra that its error message names."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coda_compile.errors import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PACKAGES = ("ops/coda_ops", "models/coda_models", "targets/coda_targets", "compiler/coda_compile")
OWN = {Path(package).name for package in PACKAGES}
# Import names that are not their distribution's, dashes and case aside.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "optimum": "optimum-onnx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
}
NO_LIBRARIES = {"_typeshed", "pytest"}  # for type checkers alone; what loads the plugin that imports it


def imported(path: Path) -> Iterator[str]:
    """Top-level names of what a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.module.split(".")[0]


def libraries() -> dict[str, str]:
    """What all packages import that is neither ours nor Python's, with a file that does."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found |= {name: path.relative_to(ROOT).as_posix() for name in imported(path)}
    return {name: path for name, path in found.items() if name not in OWN | NO_LIBRARIES | sys.stdlib_module_names}


def declared() -> dict[str, set[str]]:
    """Distributions by extra; those that everyone installs under ``""``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {re.split(r"[\[<>=;! ]", one)[0] for one in named} for extra, named in groups.items()}


def distribution(name: str) -> str:
    return DISTRIBUTIONS.get(name, name.replace("_", "-"))


@pytest.mark.parametrize("name", sorted(libraries()))
def test_what_is_imported_is_declared(name: str):
    extras = [extra for extra, named in declared().items() if distribution(name) in named and extra != "dev"]
    assert extras, f"{libraries()[name]} imports {name}, which pyproject.toml declares nowhere"


@pytest.mark.parametrize(("name", "extra"), EXTRAS.items())
def test_messages_name_the_extra_that_brings_a_library(name: str, extra: str):
    assert distribution(name) in declared()[extra]


def test_nothing_is_declared_for_everyone_that_nobody_imports():
    assert declared()[""] == {distribution(name) for name in libraries()} & declared()[""]
