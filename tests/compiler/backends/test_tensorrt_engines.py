"""Engines built ahead of time: the forms of the demo on every architecture, and what is said where one cannot be."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend, tensorrt_engines
from coda_compile.errors import CompileError, OptionError
from coda_models import CodaConfig
from coda_targets.manifest import PART
from coda_targets.modalities.text import text_signature
from coda_targets.profile import Profile
from coda_targets.proofs import BUILD
from coda_targets.signature import Input, Signature

REVIEWS = Path(__file__).parents[3] / "examples/reviews.pt"
PROFILE = Profile((1, 1), (2, 8), (4, 16))
TEXT = text_signature(100, 16)


def answers(monkeypatch: pytest.MonkeyPatch, status: int = 0, said: str = "", why: str = "") -> None:
    done = SimpleNamespace(returncode=status, stdout=said, stderr=why)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


def test_a_builder_that_is_absent_proves_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensorrt_engines, "_PACKAGE", "a_package_that_is_absent")
    assert get_backend("tensorrt-rtx").prove(Path("model.onnx"), TEXT) == ()


@pytest.mark.parametrize(
    ("status", "said", "why", "message"),
    [
        (-11, "", "", "TensorRT-RTX cannot build an engine: its process ended by SIGSEGV"),
        (1, "", "Traceback\nImportError: no libs\n", "TensorRT-RTX cannot build an engine: ImportError: no libs"),
        (
            0,
            '{"version": "1.7", "bytes": 0, "seconds": 1, "kernels": {}, "errors": ["TopK: too many\\nmore"]}',
            "",
            "TensorRT-RTX 1.7 cannot build an engine: TopK: too many: use another target",
        ),
    ],
)
def test_what_the_builder_says_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, status: int, said: str, why: str, message: str
):
    answers(monkeypatch, status, said, why)
    with pytest.raises(CompileError) as caught:
        tensorrt_engines.build(Path("model.onnx"), TEXT, PROFILE, ["SM86"])
    assert str(caught.value) == message


def test_a_builder_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch):
    def late(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 600)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(OptionError, match="built no engine within 600 s: give a profile of smaller inputs"):
        tensorrt_engines.build(Path("model.onnx"), TEXT, PROFILE, ["SM86"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "attention", "task"),
    [
        ("bert", "k_to_k", "sequence-classification"),
        ("mpnet", "k_to_all", "token-classification"),
        ("roberta", "k_to_k", "feature-extraction"),
    ],
)
def test_every_form_builds_for_every_architecture(
    family: str, attention: str, task: str, tmp_path: Path, tensorrt_rtx: None
):
    model = tiny_coda(family, CodaConfig(reduction=2, attention=attention, task=task))
    options = CompileOptions(target="tensorrt-rtx", precision=("fp32", "fp16"))
    bundle = compile(model, options, output=tmp_path / "bundle")
    for variant in bundle.manifest.variants:
        (proof,) = (one for one in variant.proofs if one.what == BUILD)
        assert proof.where == "SM80, SM86, SM89, SM120 by TensorRT-RTX 1.7.1.116"


# Kernels of an engine at 1x64,8x256,32x512 on SM86 by TensorRT-RTX 1.7.1: products, generated code and fusions.
MOST_KERNELS = {("demo", "fp32"): 150, ("demo", "fp16"): 117, ("dense", "fp32"): 113, ("dense", "fp16"): 89}


@pytest.mark.slow
@pytest.mark.parametrize(("form", "reduction"), [("demo", None), ("dense", 1)])
def test_engines_of_the_demo_have_few_kernels(
    form: str, reduction: int | None, encoder: Path, tmp_path: Path, tensorrt_rtx: None
):
    profile = Profile((1, 64), (8, 256), (32, 512))
    options = CompileOptions(
        target="tensorrt-rtx",
        precision=("fp32", "fp16"),
        backbone=encoder,
        reduction=reduction,
        profile=profile,
    )
    bundle = compile(REVIEWS, options, output=tmp_path / "bundle")
    for variant in bundle.manifest.variants:
        assert BUILD in {proof.what for proof in variant.proofs}
        path = bundle.folder / variant.models[PART]
        engine = tensorrt_engines.build(path, bundle.manifest.signature, profile, ["SM86"])
        kernels = sum(engine.kernels[kind] for kind in ("gemm", "kgen", "runtime_fusion"))
        assert 0 < kernels <= MOST_KERNELS[form, variant.precision], engine.kernels


@pytest.mark.slow
def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path, tensorrt_rtx: None):
    """TopK with more than 3,840: the parser takes it, the builder does not."""
    signature = Signature("frames", (Input("x", "float32", ("batch", "frames", 1), "values"),), 8192)
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "frames", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([4000]), "k")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(CompileError, match=r"^TensorRT-RTX 1\.7\.1\.116 cannot build an engine: .*3840"):
        tensorrt_engines.build(path, signature, Profile((1, 4000), (1, 4000), (1, 5000)), ["SM86"])
