"""Facts that live in one place: a second place that learns one fails here."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPONENTS = ("ops", "models", "targets", "compiler")
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
KNOW_INPUT_NAMES = ("targets/coda_targets/modalities/", "models/coda_models/architectures/")


def sources() -> dict[str, str]:
    """Text of every source file, by its path."""
    paths = (path for component in COMPONENTS for path in (ROOT / component).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


def test_inputs_are_named_by_signatures_alone():
    """Everyone else asks ``Signature`` for names, roles and arrays."""
    found = [
        f"{path} names {name}"
        for path, text in sources().items()
        for name in INPUT_NAMES
        if name in text and not path.startswith(KNOW_INPUT_NAMES)
    ]
    assert not found


def test_signatures_load_no_runtime():
    """Training declares them, and needs neither onnxruntime nor a bundle."""
    for name in ("signature", "errors", "modalities/__init__", "modalities/text"):
        text = (ROOT / "targets/coda_targets" / f"{name}.py").read_text("utf-8")
        imported = {
            module
            for node in ast.parse(text).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for module in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        }
        assert not {module for module in imported if module and module.startswith(("onnx", "coda_targets.bundle"))}
