"""What a bundle says of where it was verified, and what it never ran on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tests.compiler.commands import Call
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend
from coda_compile.backends.cpu import OnnxruntimeBackend
from coda_compile.errors import CompileError
from coda_models import CodaConfig
from coda_targets import Bundle, Signature, TargetError
from coda_targets.manifest import MANIFEST
from coda_targets.proofs import BUILD, PARITY, PLACEMENT, ProofInfo

OPTIONS = CompileOptions(target=("cuda", "cpu"))
NO_DEVICE = "CUDAExecutionProvider" not in ort.get_available_providers()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Bundle:
    """For a GPU, which is absent, and for CPUs, in one package."""
    model = tiny_coda("bert", CodaConfig(reduction=2))
    return compile(model, replace(OPTIONS, tokenizer=tokenizer), output=tmp_path_factory.mktemp("both") / "bundle")


@pytest.mark.skipif(not NO_DEVICE, reason="this onnxruntime may find a GPU")
def test_compiling_needs_no_device_and_says_what_never_ran(both: Bundle, call: Call):
    cuda, cpu = both.manifest.variants
    assert cuda.proofs == cpu.proofs == (ProofInfo(PARITY, "CPUExecutionProvider"),)
    assert (cuda.ran, cpu.ran) == (False, True)
    assert (
        "proofs of cuda\n  parity on CPUExecutionProvider, never run on a GPU\n"
        in call("inspect", str(both.folder)).worked()
    )


@pytest.mark.skipif(not NO_DEVICE, reason="this onnxruntime may find a GPU")
def test_what_cannot_run_is_passed_over_and_refused_where_it_is_asked_for(both: Bundle, call: Call):
    assert both.variant.name == "cpu"
    assert both.run({"input_ids": np.array([[2, 5, 3]])})["logits"].shape == (1, 3)
    refused = call("verify", str(both.folder), "--target", "cuda").refused()
    assert refused.startswith(
        f"{both.folder} is intact, and its outputs were not verified, as no variant runs here: cuda"
    )
    assert (
        call("run", str(both.folder), "good", "--target", "cuda").refused().startswith("target 'cuda' cannot run here")
    )


def test_parity_on_its_own_provider_counts_as_run(both: Bundle, tmp_path: Path):
    mine = Path(shutil.copytree(both.folder, tmp_path / "bundle"))
    plain = json.loads((mine / MANIFEST).read_text("utf-8"))
    plain["variants"][0]["proofs"] = [{"what": "parity", "where": "CUDAExecutionProvider NVIDIA L4"}]
    plain["variants"][1]["proofs"] = []
    (mine / MANIFEST).write_text(json.dumps(plain), "utf-8")
    assert [one.ran for one in Bundle(mine).manifest.variants] == [True, True]


class Prover(OnnxruntimeBackend):
    """Builds something of the file."""

    def prove(self, path: Path, signature: Signature) -> tuple[ProofInfo, ...]:
        return (ProofInfo(BUILD, f"{path.name}, {signature.max_length} tokens"),)


def test_a_backend_proves_more_once_parity_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cpu = get_backend("cpu")
    backend = Prover(cpu.runtime, cpu.opset, cpu.precisions)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    bundle = compile(model, CompileOptions(target=backend), output=tmp_path / "b")
    parity, built = bundle.variant.proofs
    assert (parity.what, built) == (PARITY, ProofInfo(BUILD, f"model.onnx, {model.signature.max_length} tokens"))

    def fail(*_: object) -> None:
        raise CompileError("nothing can be built of it")

    monkeypatch.setattr(Prover, "prove", fail)
    with pytest.raises(CompileError, match="nothing can be built"):
        compile(tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(target=backend), output=tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_where_there_is_a_gpu_copies_between_nodes_are_looked_for(monkeypatch: pytest.MonkeyPatch):
    cuda, signature, seen = get_backend("cuda"), tiny_coda("bert").signature, []
    assert cuda.prove(Path("model.onnx"), signature) == () or not NO_DEVICE
    monkeypatch.setattr("coda_compile.backends.require_runtime", lambda runtime: None)
    monkeypatch.setattr("coda_compile.backends.cuda.place", lambda runtime: "CUDAExecutionProvider NVIDIA L4")
    monkeypatch.setattr(
        "coda_compile.backends.cuda.open_session", lambda path, runtime: seen.append(runtime.cuda_graph)
    )
    assert cuda.prove(Path("model.onnx"), signature) == (ProofInfo(PLACEMENT, "CUDAExecutionProvider NVIDIA L4"),)
    assert seen == [True]

    def copies(*_: object) -> None:
        raise TargetError("it copies")

    monkeypatch.setattr("coda_compile.backends.cuda.open_session", copies)
    assert cuda.prove(Path("model.onnx"), signature) == ()  # it runs all the same
