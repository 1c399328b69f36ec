"""Targets: one frozen description each, found by name."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import coda_targets
from coda_compile.passes import make_pass
from coda_targets import Bundle, Target, TargetError, get_target, target_names
from coda_targets.bundle import open_session

_NO_TARGET = {
    "__init__",
    "adapters",
    "bundle",
    "errors",
    "manifest",
    "plugin",
    "routing",
    "saturation",
    "weights",
    "target",
    "text",
}
FILES = sorted(path.stem for path in Path(coda_targets.__file__).parent.glob("*.py") if path.stem not in _NO_TARGET)


def test_every_target_has_a_file_and_every_file_a_target():
    assert set(FILES) == {*target_names(), "null"}


@pytest.mark.parametrize("name", FILES)
def test_target_file_loads(name: str):
    target = get_target(name)
    assert target is importlib.import_module(f"coda_targets.{name}").TARGET
    assert target.name == name
    assert target.summary
    assert target.install
    assert target.operators in ("function", "inlined")
    assert target.precisions[0] == "fp32"


@pytest.mark.parametrize("name", FILES)
def test_target_is_frozen(name: str):
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_target(name).opset = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", FILES)
def test_lowering_names_passes_that_exist(name: str):
    for step in get_target(name).lowering:
        assert make_pass(step) is not None


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "bundle", "coda_targets.runtimes.cpu", "../cpu"])
def test_unknown_target_lists_the_known(name: str):
    with pytest.raises(TargetError, match=r"is unknown: use one of cpu, openvino, cuda, tensorrt$") as caught:
        get_target(name)
    assert repr(name) in str(caught.value)


def test_null_target_runs_nothing(compiled: Bundle):
    with pytest.raises(TargetError, match=r"^target 'null' cannot run here: nothing runs a bundle of the null target"):
        open_session(compiled.model_path, get_target("null"))


def test_absent_provider_says_what_to_install(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(TargetError, match=r"CUDAExecutionProvider is not installed: pip install onnxruntime-gpu$"):
        open_session(compiled.model_path, get_target("cuda"))


def test_session_options_of_a_target_are_applied(compiled: Bundle):
    target = dataclasses.replace(
        get_target("cpu"),
        session_options={"enable_mem_pattern": False},
        session_config={"session.intra_op.allow_spinning": "0"},
    )
    options = open_session(compiled.model_path, target, threads=2).get_session_options()
    assert options.enable_mem_pattern is False
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_targets_are_equal_by_value():
    target = get_target("cpu")
    assert dataclasses.replace(target) == target
    assert isinstance(target, Target)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("coda_targets", ["torch", "transformers", "onnx", "tokenizers", "onnx_ir", "onnxscript"]),
        ("coda_targets.modalities.text", ["torch", "transformers", "onnx", "tokenizers"]),
        ("coda_targets.routing", ["torch", "transformers", "onnx", "tokenizers"]),
        ("coda_compile", ["torch", "transformers", "onnx_ir", "onnxscript"]),
        ("coda_compile.cli.main", ["torch", "transformers", "onnx_ir", "onnxscript"]),
    ],
)
def test_import_is_light(module: str, heavy: list[str]):
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_a_bundle_imports_no_torch(compiled: Bundle):
    code = (
        "import sys, numpy as np; from coda_targets import Bundle; from coda_targets.modalities.text import TextCodec;"
        f"b = Bundle({str(compiled.folder)!r}, threads=1); c = TextCodec(b); e = c.encode(['good w1', 'bad']);"
        "print(len(c.decode(b.run(e.inputs), e)), [m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"


def test_threads_do_not_change_results(compiled: Bundle):
    ids = np.arange(4, 24).reshape(2, 10)
    one, two = (Bundle(compiled.folder, threads=n).run({"input_ids": ids})["logits"] for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-5)
