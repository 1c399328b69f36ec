"""The stand-in itself: it counts what onnxruntime asks for, finds what must not be there, and fails as a card fails."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest
from tests.cuda_stand_in import build
from tests.cuda_stand_in.build import StandIn, StandInError, UnavailableError
from tests.cuda_stand_in.observe import CPU, CUDA, Node, observe

pytestmark = pytest.mark.slow

TWO_LAUNCHES = """
    g (float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
    { z = MatMul(x, w)  y = Relu(z) }"""
UNSIGNED_BYTES = """
    g (float[batch, 4] x) => (float[batch, 1] y) <uint8[4, 1] w = {1, 2, 3, 4}>
    { positive = Relu(x)  q, scale, zero = DynamicQuantizeLinear(positive)  z = MatMulInteger(q, w, zero)  y = Cast <to = 1> (z) }"""
SIZE_ON_THE_DEVICE = """
    g (float[batch, 4] x) => (float[batch, 4] y)
    { sizes = Shape(x)  halves = Div(sizes, sizes)  wide = Cast <to = 1> (halves)  more = ReduceSum(wide)  y = Mul(x, more) }"""
ATTENTION = """
    g (float16[batch, tokens, 64] x, float16[batch, 1, tokens, tokens] bias) => (float16[batch, tokens, 64] y)
    { y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x, , , bias) }"""


def write(graph: str, folder: Path) -> Path:
    """A model file of one graph."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]> {graph}')
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def program(stand_in: StandIn, lines: str, **settings: object) -> list[str]:
    """What a program that calls the runtime itself prints."""
    start = "from ctypes import *; cuda = CDLL('libcudart.so.13'); place, other = c_void_p(), c_void_p(); size = c_size_t(16)"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}\n{lines}"],
        env=stand_in.environment(**settings),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_launches_are_counted_by_name(stand_in: StandIn, tmp_path: Path):
    seen = observe(stand_in, write(TWO_LAUNCHES, tmp_path), [(3,), (500,)])
    assert seen.onnxruntime == build.ONNXRUNTIME.partition("==")[2]
    assert [(node.operator, node.provider) for node in seen.nodes] == [("MatMul", CUDA), ("Relu", CUDA)]
    assert seen.assigned == {CUDA: 2}
    assert seen.copies == 0
    for run in seen.runs:
        (product, relu) = run.by_name()
        assert product == ("cublas", "cublasSgemm_v2")
        assert relu[0] == "kernel"
        assert "onnxruntime::cuda::OP_Relu<float>" in relu[1]
        assert run.launches == 2
        assert run.count("copy") == 0
    assert [event.size for event in seen.runs[1].later if event.event == "kernel"] == [2]  # blocks of 1,024 numbers


def test_a_cuda_graph_is_captured_and_launched(stand_in: StandIn, tmp_path: Path):
    seen = observe(stand_in, write(TWO_LAUNCHES, tmp_path), [(3,), (500,)], cuda_graph=True)
    for run in seen.runs:
        assert [event.size for event in run.first if event.event == "capture ends"] == [2]
        assert [(event.event, event.size) for event in run.later if event.event != "synchronise"] == [
            ("graph launch", 2)
        ]


def test_memory_on_the_device_is_counted(stand_in: StandIn, tmp_path: Path):
    small, large = (observe(stand_in, write(TWO_LAUNCHES, tmp_path), [(rows,)]).peak_bytes for rows in (1, 10_000_000))
    assert 2 * 160_000_000 < large < 8 * 160_000_000  # an input and an output; onnxruntime's arena doubles
    assert small < 100_000_000


def test_what_has_no_kernel_is_found_on_the_cpu_with_its_copies(stand_in: StandIn, tmp_path: Path):
    seen = observe(stand_in, write(UNSIGNED_BYTES, tmp_path), [(3,)])
    assert Node("MatMulInteger", CPU, ("uint8", "uint8"), ("int32",)) in seen.on_cpu  # its weights are prepacked
    assert seen.copies == 2
    assert {event.name for event in seen.runs[0].later if event.event == "copy"} == {"device to host", "host to device"}


def test_a_size_that_a_kernel_reads_is_found_as_a_copy(stand_in: StandIn, tmp_path: Path):
    model = write(SIZE_ON_THE_DEVICE, tmp_path)
    seen = observe(stand_in, model, [(3,)])
    assert seen.operators["MemcpyFromHost"] == seen.copies == 1
    assert "host to device" in {event.name for event in seen.runs[0].later if event.event == "copy"}
    with pytest.raises(StandInError, match="cannot use the graph capture feature"):
        observe(stand_in, model, [(3,)], cuda_graph=True)


@pytest.mark.parametrize(
    ("capability", "kernel"),
    [("9.0", "cudnnBackendExecute"), ("8.6", "cutlass::arch::Sm80"), ("7.5", "cutlass::arch::Sm75")],
)
def test_the_card_decides_which_kernels_run(stand_in: StandIn, capability: str, kernel: str, tmp_path: Path):
    (run,) = observe(stand_in, write(ATTENTION, tmp_path), [(2, 128)], capability=capability).runs
    assert [kernel in name for _, name in run.by_name()] == [True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 0}, "no CUDA-capable device is detected"),
        ({"driver": 0}, "CUDA driver version is insufficient for CUDA runtime version"),
        ({"driver": 12080}, "CUDA driver version is insufficient for CUDA runtime version"),
        ({"memory": 30_000_000}, "Failed to allocate memory"),
        ({"capability": "5.2"}, "no kernel image is available for execution on the device"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_failures_of_a_card_are_those_of_the_runtime(
    stand_in: StandIn, settings: dict[str, object], message: str, tmp_path: Path
):
    with pytest.raises(StandInError, match=message):
        observe(stand_in, write(TWO_LAUNCHES, tmp_path), [(10_000_000,)], **settings)


def test_errors_stay_until_they_are_asked_for(stand_in: StandIn):
    lines = """
print(cuda.cudaMalloc(byref(place), c_size_t(1001)), cuda.cudaPeekAtLastError(), cuda.cudaGetLastError(), cuda.cudaGetLastError())
print(cuda.cudaMalloc(byref(place), c_size_t(600)), cuda.cudaMalloc(byref(other), c_size_t(600)))
cuda.cudaFree(place); print(cuda.cudaMalloc(byref(other), c_size_t(600)))
cuda.cudaMemGetInfo(byref(size), byref(place)); print(size.value, place.value)
print(cuda.cudaSetDevice(1), cuda.cudaSetDevice(0))"""
    assert program(stand_in, lines, memory=1000) == ["2", "2", "2", "0", "0", "2", "0", "400", "1000", "101", "0"]


@pytest.mark.parametrize(
    "call", ["cudaMalloc(byref(place), size)", "cudaDeviceSynchronize()", "cudaStreamSynchronize(stream)"]
)
def test_what_a_capture_forbids_ends_it(stand_in: StandIn, call: str, tmp_path: Path):
    lines = f"""
stream = c_void_p(); cuda.cudaStreamCreate(byref(stream)); cuda.cudaStreamBeginCapture(stream, 0)
print(cuda.{call}, cuda.cudaStreamEndCapture(stream, byref(other)), other.value)"""
    assert program(stand_in, lines, log=tmp_path / "log") == ["900", "901", "None"]
    assert f'"refused in capture", "name": "{call.partition("(")[0]}"' in (tmp_path / "log").read_text("utf-8")


def test_a_symbol_that_is_missing_is_named(stand_in: StandIn, tmp_path: Path):
    sources = Path(shutil.copytree(build.SOURCES, tmp_path / "src"))
    for name, symbols in (("cudart/memory.cpp", ["cudaMemPoolTrimTo"]), ("cudnn.cpp", ["cudnnReduceTensor"])):
        text = (sources / name).read_text("utf-8")
        for symbol in symbols:
            text = re.sub(rf"\b{symbol}\b", f"{symbol}_of_another_version", text)
        (sources / name).write_text(text, "utf-8")
    headers = next(build.CACHE.glob("nvidia-*")) / "nvidia/cu13/include"
    broken = StandIn(stand_in.onnxruntime, build.build(headers, sources, tmp_path))
    assert build.missing_symbols(stand_in.provider, stand_in.libraries) == []
    assert build.missing_symbols(broken.provider, broken.libraries) == ["cudaMemPoolTrimTo", "cudnnReduceTensor"]
    with pytest.raises(
        StandInError, match="undefined symbol: cudaMemPoolTrimTo"
    ):  # and so says who goes on all the same
        observe(broken, write(TWO_LAUNCHES, tmp_path), [(3,)])


def test_what_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        UnavailableError, match=f"^{build.ONNXRUNTIME} cannot be had: ERROR: No matching distribution found"
    ):
        build.stand_in()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
