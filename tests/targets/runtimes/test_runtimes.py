"""Runtimes: one frozen description each, found by the file that it lies in."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coda_targets.runtimes
from coda_targets import Bundle, Runtime, TargetError, get_runtime, runtime_names

FILES = sorted(path.stem for path in Path(coda_targets.runtimes.__file__).parent.glob("*.py"))
NAMES = [*runtime_names(), "null"]
HELPERS = [
    "__init__",
    "cuda_graphs",
    "engine_cache",
    "nvidia",
    "placement",
    "plugin",
    "saturation",
    "script",
    "session",
]


def test_every_file_is_a_runtime_or_helps_one():
    assert sorted([*(name.replace("-", "_") for name in NAMES), *HELPERS]) == FILES


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_is_what_its_file_says(name: str):
    runtime = get_runtime(name)
    assert isinstance(runtime, Runtime)
    assert runtime is importlib.import_module(f"coda_targets.runtimes.{name.replace('-', '_')}").RUNTIME
    assert runtime.name == name
    assert runtime.install
    assert runtime.offered is (name != "null")


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_is_frozen_and_equal_by_value(name: str):
    runtime = get_runtime(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        runtime.threads = 1  # type: ignore[misc]
    assert dataclasses.replace(runtime) == runtime


@pytest.mark.parametrize("name", ["", "gpu", "CPU", *HELPERS, "bundle", "coda_targets.runtimes.cpu", "../cpu"])
def test_unknown_runtime_lists_the_known(name: str):
    with pytest.raises(
        TargetError, match=r"is unknown: use one of cpu, cuda, openvino, tensorrt, tensorrt-rtx$"
    ) as caught:
        get_runtime(name)
    assert repr(name) in str(caught.value)


def test_a_file_in_the_folder_is_a_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "from coda_targets.runtimes import Runtime\nRUNTIME = Runtime('abacus', (), 'buy one')\n"
    (tmp_path / "abacus.py").write_text(text)
    monkeypatch.setattr(coda_targets.runtimes, "__path__", [*coda_targets.runtimes.__path__, str(tmp_path)])
    assert get_runtime("abacus").install == "buy one"
    assert "abacus" in runtime_names()
    sys.modules.pop("coda_targets.runtimes.abacus")


def test_what_the_preferred_provider_is():
    cuda = get_runtime("cuda")
    assert (cuda.preferred, cuda.options, cuda.distributions) == ("CUDAExecutionProvider", {"use_tf32": "0"}, ())
    null = get_runtime("null")
    assert (null.preferred, null.options) == ("", {})
    openvino = get_runtime("openvino")
    assert openvino.distributions == ("onnxruntime-ep-openvino",)
    assert openvino.options["INFERENCE_PRECISION_HINT"] == "f32"


def test_a_device_is_chosen_where_there_are_several():
    cuda = get_runtime("cuda").on_device(3, 1 << 30, cuda_graph=True)
    assert (cuda.index, cuda.memory_limit, cuda.cuda_graph) == (3, 1 << 30, True)
    cpu = get_runtime("cpu")
    assert cpu.on_device() == cpu


@pytest.mark.parametrize(
    ("name", "asked", "sentence"),
    [
        ("cuda", {"index": -1}, r"^device -1 cannot be: devices count from 0"),
        ("cuda", {"memory_limit": 0}, r"^memory_limit 0 cannot be: .* memory_limit is a number of bytes$"),
        ("cpu", {"index": 1}, r"^target 'cpu' has one device and all of its memory: leave device and memory_limit out"),
        ("openvino", {"memory_limit": 1}, r"^target 'openvino' has one device and all of its memory"),
        ("cpu", {"cuda_graph": True}, r"^target 'cpu' has no CUDA graphs: leave cuda_graph out, or choose another"),
    ],
)
def test_a_choice_that_a_target_does_not_have_is_refused(name: str, asked: dict[str, Any], sentence: str):
    with pytest.raises(TargetError, match=sentence):
        get_runtime(name).on_device(**asked)


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
