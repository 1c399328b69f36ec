"""What is measured where nobody says, and targets that are refused before anything is loaded."""

import pytest
from tests.compiler.commands import Call

from coda_compile.bench.plan import Plan, cases, device_of
from coda_compile.errors import CodaError
from coda_targets import get_runtime
from coda_targets.runtimes import DEFAULT_TARGET, GPU
from coda_targets.signature import Signature

CPU = get_runtime(DEFAULT_TARGET).device


@pytest.fixture
def signature() -> Signature:
    from tests.conftest import tiny_coda

    return tiny_coda("bert").signature  # of at most 66 tokens


def test_gpus_get_larger_batches(signature: Signature):
    assert cases(Plan(), signature, CPU) == [(1, 66)]
    assert cases(Plan(), signature, GPU) == [(1, 66), (8, 66), (32, 66)]
    assert cases(Plan(batches=(2,), tokens=(5, 6)), signature, GPU) == [(2, 5), (2, 6)]


def test_targets_have_a_device():
    assert Plan().device() == CPU
    assert device_of(["cpu", "openvino"]) == CPU
    assert device_of(["cuda"]) == GPU


def test_hardware_is_not_mixed():
    with pytest.raises(CodaError, match="^targets run on different hardware, cpu on CPUs, cuda on GPUs: measure each"):
        Plan(targets=("cpu", "cuda")).check()


@pytest.mark.parametrize("shape", [["--shape", "bert-large"], ["no-such-model.pt"]])
def test_a_machine_without_the_hardware_says_so_at_once(call: Call, shape: list[str]):
    """Whatever is installed, this machine has no target null, and onnxruntime alone runs no CUDA."""
    assert call("bench", *shape, "-t", "null").refused().startswith("target 'null' cannot run here: ")
    assert call("bench", *shape, "-t", "gpu").refused().startswith("target 'gpu' is unknown: use one of ")


def test_without_cuda_bench_ends_in_a_sentence(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert (
        call("bench", "--shape", "bert-large", "-t", "cuda")
        .refused()
        .startswith("target 'cuda' cannot run here: CUDAExecutionProvider is not ")
    )
