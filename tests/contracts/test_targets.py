"""What is known in one place: a test fails when a second place learns it again."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import coda_compile
import coda_targets
from coda_targets import runtime_names

PACKAGES = [Path(package.__file__).parent for package in (coda_compile, coda_targets)]
HOMES = ("backends", "runtimes")  # where a target may be named
NAMES = {*runtime_names(), "null"}
# What is called like a target and means something else, by the file that it stands in.
OTHER_MEANINGS = {
    ("machine.py", "cpu"): "a field of what is known of a machine",
    ("machine.py", "openvino"): "a package, whose version is noted",
    ("baselines.py", "openvino"): "the runtime itself, as a dense baseline",
    ("outputs.py", "cpu"): "that field, as it is written",
    ("peft.py", "cpu"): "a device of torch",
    ("openers.py", "cuda"): "a device of torch and of onnxruntime",
}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the compiler and of what runs its bundles, but for the homes of targets."""
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if not set(path.relative_to(package).parts) & set(HOMES):
                yield path, ast.parse(path.read_text("utf-8"))


def docstrings(tree: ast.Module) -> set[int]:
    """Identities of the nodes that hold the text of docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    return {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}


def is_target(path: Path, name: str | None) -> bool:
    """Whether a name is a target's, and means that in a file."""
    return name in NAMES and (path.name, name) not in OTHER_MEANINGS


def named_targets(path: Path, tree: ast.Module) -> Iterator[str]:
    """Where a file knows a target: its name, a list of names, its modules, or an argument called after it."""
    told = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            listed = NAMES & set(re.findall(r"\w+", node.value))
            if len(listed) > 1 or is_target(path, node.value):
                yield f"{path.name}:{node.lineno} {node.value!r}"
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            modules = {*parts[1:], *(alias.name for alias in node.names)} if set(parts) & set(HOMES) else set()
            if modules & NAMES:
                yield f"{path.name}:{node.lineno} imports {sorted(modules & NAMES)}"
        elif isinstance(node, ast.arg | ast.keyword) and is_target(path, node.arg):
            yield f"{path.name}:{node.lineno} has an argument {node.arg}"


def asked_for_a_plugin(path: Path, tree: ast.Module) -> Iterator[str]:
    """Where a file asks whether a runtime is a plugin, and not for what it needs to know."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "plugin":
            yield f"{path.name}:{node.lineno}"


def test_targets_are_named_in_backends_and_runtimes_alone():
    assert [found for path, tree in sources() for found in named_targets(path, tree)] == []
    assert [found for path, tree in sources() for found in asked_for_a_plugin(path, tree)] == []


def test_and_a_second_place_would_be_found():
    """Each way in which a file may know a target is one that is looked for."""
    ways = {
        "if target == 'cpu': pass": "'cpu'",
        "help = 'one of cpu, cuda'": "'one of cpu, cuda'",
        "from coda_targets.runtimes.openvino import RUNTIME": "imports ['openvino']",
        "from coda_compile.backends import cpu": "imports ['cpu']",
        "AttachFunctions(openvino=True)": "has an argument openvino",
    }
    for text, what in ways.items():
        (found,) = named_targets(Path("one.py"), ast.parse(text))
        assert found == f"one.py:1 {what}"
    assert list(asked_for_a_plugin(Path("one.py"), ast.parse("if runtime.plugin: pass"))) == ["one.py:1"]
    assert not list(named_targets(Path("one.py"), ast.parse('"""For cpu and cuda."""\nfrom torch import cuda')))
