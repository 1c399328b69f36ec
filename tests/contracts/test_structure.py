"""The shape of the house: short files, imports that run one way and in no circle, and what is loaded when."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {  # each with those that it may import
    "ops/coda_ops": {"coda_ops"},
    "targets/coda_targets": {"coda_ops", "coda_targets"},
    "models/coda_models": {"coda_ops", "coda_targets", "coda_models"},
    "compiler/coda_compile": {"coda_ops", "coda_targets", "coda_models", "coda_compile"},
}
OURS = set().union(*PACKAGES.values())
MOST_LINES = 400


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the packages, with its name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to((ROOT / package).parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(sources())


def imports(path: Path, *, anywhere: bool) -> Iterator[str]:
    """Our modules that a file imports: anywhere in it, or when it is imported itself."""
    waiting: list[ast.AST] = list(ast.parse(path.read_text("utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in OURS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in MODULES else node.module
        elif anywhere:
            waiting += ast.iter_child_nodes(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def loaded_by(code: str, *libraries: str) -> list[str]:
    """Which libraries a fresh interpreter has loaded after some code."""
    asked = f"{code}\nimport sys\nprint(*sorted({set(libraries)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_no_file_is_long():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = {name: len((ROOT / name).read_text("utf-8").splitlines()) for name in listed.stdout.splitlines()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_read_an_installed_package(package: str):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str):
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path, anywhere=True)
        if name.split(".")[0] not in PACKAGES[package]
    }
    assert found == set()


def test_models_say_what_they_take_and_are_worth_and_no_more():
    """What people train knows nothing of how it will run."""
    taken = {
        name
        for path in (ROOT / "models/coda_models").rglob("*.py")
        for name in imports(path, anywhere=True)
        if name.startswith("coda_targets")
    }
    told = ("coda_targets.signature", "coda_targets.modalities", "coda_targets.fidelity")
    assert {name for name in taken if not name.startswith(told)} == set()


def test_modules_import_each_other_in_no_circle():
    """What a module imports when it is loaded; what its functions import is loaded when they run."""
    graph = {name: set(imports(path, anywhere=False)) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_running_a_bundle_loads_onnxruntime_and_numpy_alone():
    heavy = ("torch", "transformers", "tokenizers", "onnx", "onnx_ir", "rich", "click", "msgspec")
    light = ("numpy", "onnxruntime")
    assert loaded_by("import coda_targets; coda_targets.Bundle", *heavy, *light) == sorted(light)


def test_help_loads_nothing_heavy():
    code = "import sys; from coda_compile.cli.main import main; sys.argv = ['coda-compile', '--help']; main()"
    heavy = ("torch", "onnxruntime", "transformers", "tokenizers", "numpy", "onnx", "rich", "msgspec", "psutil")
    assert loaded_by(code, *heavy) == []
