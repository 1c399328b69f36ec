"""Facts that live in one place: a second place that learns one fails here."""

import subprocess
import sys
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


def loaded_by(statement: str) -> set[str]:
    """Packages that a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    )


def test_signatures_load_no_runtime():
    """Models declare them, and training needs none."""
    loaded = loaded_by("import coda_targets.signature, coda_targets.modalities.text")
    assert "numpy" in loaded
    assert not loaded & {"onnxruntime", "onnx", "tokenizers", "torch"}


def test_bundles_load_onnxruntime_and_numpy_alone():
    loaded = loaded_by("import coda_targets; coda_targets.Bundle")
    assert {"numpy", "onnxruntime"} <= loaded
    assert not loaded & {"onnx", "onnx_ir", "tokenizers", "torch", "transformers", "rich", "click"}
