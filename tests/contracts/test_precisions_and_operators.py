"""Facts that live in one place: a second place that learns one fails here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from coda_compile.precision import precision_names
from coda_ops.catalogue import OPERATORS

ROOT = Path(__file__).parents[2]
PRECISIONS = set(precision_names())
# Where a precision may be named: its recipes, the targets that have it, and what is not ours to choose.
KNOW_PRECISIONS = (
    "compiler/coda_compile/precision/",
    "compiler/coda_compile/backends/",
    "targets/coda_targets/runtimes/",
    "compiler/coda_compile/bench/baselines.py",  # what other runtimes' files are quantised to
    "compiler/coda_compile/bench/matrix.py",  # what the machine multiplies
)


def sources(*components: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module of some components, by its path."""
    for component in components:
        for path in sorted((ROOT / component).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def precisions_named(tree: ast.Module) -> Iterator[str]:
    """Each literal that is a precision's name, or begins one, as tests of it do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in PRECISIONS:
            yield f"{node.value!r}, line {node.lineno}"


def operators_listed(tree: ast.Module) -> Iterator[str]:
    """Each literal that lists three operators of the catalogue or more."""
    names = {operator.name for operator in OPERATORS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict | ast.List | ast.Set | ast.Tuple):
            values = node.keys if isinstance(node, ast.Dict) else node.elts
            inside = {
                one.value for value in values if value for one in ast.walk(value) if isinstance(one, ast.Constant)
            }
            if len(inside & names) > 2:
                yield f"{sorted(inside & names)}, line {node.lineno}"


def test_precisions_are_named_by_their_recipes_and_by_targets_alone():
    found = [
        f"{path} names {what}"
        for path, tree in sources("ops", "models", "targets", "compiler")
        for what in precisions_named(tree)
        if not path.startswith(KNOW_PRECISIONS)
    ]
    assert found == []


def test_operators_are_listed_in_the_catalogue_alone():
    found = [
        f"{path} lists {what}"
        for path, tree in sources("ops", "models", "targets", "compiler")
        for what in operators_listed(tree)
        if path != "ops/coda_ops/catalogue.py"
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["if precision == 'int4': pass", "calibrated = name in ('int8-static',)", "default = 'fp32'"]
)
def test_a_second_place_that_names_a_precision_would_be_found(text: str):
    assert list(precisions_named(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    ["_TWO = {'AddNorm', 'AddAdapter', 'Route'}", "bodies = {'Route': a, 'AddNorm': b, 'Adapter': c}"],
)
def test_a_second_list_of_operators_would_be_found(text: str):
    assert list(operators_listed(ast.parse(text)))
