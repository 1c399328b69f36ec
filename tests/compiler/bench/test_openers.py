"""Openers of GPU contenders, on a CPU that stands in for the device; and the half file that a rival runs."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tests.conftest import tiny_coda

from coda_compile.bench import openers
from coda_compile.bench.baselines import DenseAdapter
from coda_compile.errors import CodaError
from coda_models import CodaConfig
from coda_targets.runtimes import cuda_graphs, nvidia
from coda_targets.signature import Arrays


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> DenseAdapter:
    return DenseAdapter(tiny_coda("bert", CodaConfig(reduction=4)), tmp_path_factory.mktemp("dense"))


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openers, "_TORCH_DEVICE", "cpu")
    monkeypatch.setattr(cuda_graphs, "_DEVICE", "cpu")
    monkeypatch.setattr(nvidia, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)


def logits(dense: DenseAdapter, inputs: Arrays) -> np.ndarray:
    with torch.inference_mode():
        return dense.model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()


def test_the_rival_in_half_computes_what_the_dense_adapter_does(dense: DenseAdapter):
    stored = onnx.load(dense.half_onnx)
    weights = [one for one in stored.graph.initializer if one.data_type == onnx.TensorProto.FLOAT16]
    assert sum(np.prod(one.dims) for one in weights) > 10_000
    inputs = dense.model.signature.random(2, 12)
    session = ort.InferenceSession(dense.half_onnx, providers=["CPUExecutionProvider"])
    (found, *_) = session.run(["logits"], {one.name: inputs[one.name] for one in session.get_inputs()})
    assert found.dtype == np.float32
    assert np.abs(found - logits(dense, inputs)).max() < 0.05


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_runs_begin_and_end_in_the_memory_of_the_cpu(dense: DenseAdapter, cpu_as_gpu: None, cuda_graph: bool):
    prepare = openers.onnx_on_gpu(1, str(dense.onnx), cuda_graph=cuda_graph)
    several = [dense.model.signature.random(*shape) for shape in ((1, 7), (3, 20))]
    for inputs, run in [(inputs, prepare(inputs)) for inputs in several]:
        for _ in range(2):
            outputs = run()
            assert all(isinstance(one, np.ndarray) for one in outputs)
            assert any(
                one.shape == (len(inputs["input_ids"]), 3) and np.allclose(one, logits(dense, inputs), atol=1e-4)
                for one in outputs
            )


def test_torch_runs_in_half(dense: DenseAdapter, cpu_as_gpu: None):
    inputs = dense.model.signature.random(2, 9)
    outputs = openers.torch_on_gpu(1, str(dense.checkpoint), compiled=False)(inputs)()
    assert {one.dtype for one in outputs} == {torch.float16}
    assert any(
        one.shape == (2, 3) and np.allclose(one.float().numpy(), logits(dense, inputs), atol=0.05) for one in outputs
    )


def test_without_a_gpu_both_say_so(dense: DenseAdapter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(CodaError, match=r"^torch \S+ sees no GPU: install its CUDA build$"):
        openers.torch_on_gpu(1, str(dense.checkpoint), compiled=True)
    with pytest.raises(CodaError, match=r"has no CUDAExecutionProvider: pip install onnxruntime-gpu$"):
        openers.onnx_on_gpu(1, str(dense.onnx))


def test_onnxruntime_that_falls_back_to_the_cpu_is_no_contender(dense: DenseAdapter, monkeypatch: pytest.MonkeyPatch):
    """As it does without a word where a library of CUDA's is missing."""
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(CodaError, match="cannot use its CUDAExecutionProvider here"):
        openers.onnx_on_gpu(1, str(dense.onnx))
