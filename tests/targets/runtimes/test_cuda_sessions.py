"""Bundles for NVIDIA GPUs on onnxruntime's own CUDA build, over the stand-in: no kernel computes, all else is real."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
from tests.conftest import tiny_coda
from tests.cuda_stand_in.build import StandIn
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_models import CodaConfig
from coda_targets import Bundle

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LOAD = """
import json, os, sys, threading
import numpy as np
from coda_targets import Bundle, TargetError
log = open(os.environ["CUDA_STAND_IN_LOG"])
def events():
    made = {}
    for line in log:
        name = json.loads(line)["event"]
        made[name] = made.get(name, 0) + 1
    return made
def draw(bundle, batch, length): return bundle.manifest.signature.random(batch, length)
said = []
"""


@dataclass(frozen=True)
class Ran:
    """What a program said: each thing in ``said``, and the sentence of an error that ended it."""

    said: list[Any]
    refused: str
    printed: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A bundle for a GPU and for a CPU, compiled without one."""
    options = CompileOptions(target=("cuda", "cpu"), tokenizer=tokenizer)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    return compile(model, options, output=tmp_path_factory.mktemp("cuda") / "bundle").folder


def program(stand_in: StandIn, lines: str, log: Path, **settings: object) -> Ran:
    """Run lines in a process on the stand-in; they use ``folder`` and append to ``said``."""
    log.touch()
    ending = f"""
try:
{"".join(f"    {line}{chr(10)}" for line in lines.strip().splitlines())}
except TargetError as error:
    print(json.dumps([said, str(error)]))
else:
    print(json.dumps([said, ""]))
"""
    environment = stand_in.environment(log=log, **settings) | {"OMP_NUM_THREADS": "1"}
    own = [
        str(path) for path in map(Path, sys.path) if (path / "coda_targets").is_dir() or (path / "coda_ops").is_dir()
    ]
    environment["PYTHONPATH"] = ":".join([environment["PYTHONPATH"], *own])
    done = subprocess.run([sys.executable, "-c", LOAD + ending], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    said, refused = json.loads(last)
    return Ran(said, refused, "\n".join(printed))


def test_a_bundle_runs_on_the_gpu_alone(stand_in: StandIn, folder: Path, tmp_path: Path):
    ran = program(
        stand_in,
        f"""
bundle = Bundle({str(folder)!r})
said.append(bundle.variant.name)
said.append(bundle.session.get_providers()[0])
said.append(list(bundle.run(draw(bundle, 2, 6))["logits"].shape))
said.append(bundle.session.get_provider_options()["CUDAExecutionProvider"]["use_tf32"])
""",
        tmp_path / "log",
    )
    assert ran == Ran(["cuda", "CUDAExecutionProvider", [2, 3], "0"], "", "")


def test_a_cuda_graph_is_one_launch(stand_in: StandIn, folder: Path, tmp_path: Path):
    """The first run of a shape captures; others launch; another shape is another graph; each thread has the same."""
    ran = program(
        stand_in,
        f"""
bundle = Bundle({str(folder)!r}, cuda_graph=True)
bundle.warm_up([(1, 6), (2, 9)])
made = events()
said.append([made["capture begins"], made["graph launch"]])
def run(batch, length):
    array = bundle.run(draw(bundle, batch, length))["logits"]
    assert array.shape == (batch, 3)
    made = events()
    said.append([made.get("graph launch", 0), made.get("kernel", 0), made.get("capture begins", 0)])
for shape in ((1, 6), (2, 9), (1, 6)):
    run(*shape)
thread = threading.Thread(target=run, args=(1, 6))
thread.start()
thread.join()
""",
        tmp_path / "log",
    )
    assert ran.refused == ""
    assert ran.said[0] == [2, 2]
    assert ran.said[1:] == [[1, 0, 0]] * 4


def test_graphs_are_bounded_and_one_runs_at_a_time(stand_in: StandIn, folder: Path, tmp_path: Path):
    ran = program(
        stand_in,
        f"""
from concurrent.futures import ThreadPoolExecutor
from coda_targets.runtimes.cuda_graphs import MOST_GRAPHS
bundle = Bundle({str(folder)!r}, cuda_graph=True)
bundle.warm_up((1, 2 + i) for i in range(MOST_GRAPHS))
events()
with ThreadPoolExecutor(8) as pool:
    shapes = [(1, 2 + i % MOST_GRAPHS) for i in range(64)]
    done = list(pool.map(lambda shape: bundle.run(draw(bundle, *shape))["logits"].shape, shapes))
made = events()
said.append([len(done), made["graph launch"], made.get("kernel", 0), made.get("capture begins", 0)])
bundle.run(draw(bundle, 2, 3))
bundle.run(draw(bundle, 2, 3))
made = events()
said.append([made.get("graph launch", 0), made["kernel"] > 0, made.get("capture begins", 0)])
""",
        tmp_path / "log",
    )
    assert ran.refused == ""
    assert ran.said == [[64, 64, 0, 0], [0, True, 0]]


ABSENT = {
    "no driver": ({"driver": 0}, "target 'cuda' cannot run here: the NVIDIA driver finds no GPU: see nvidia-smi"),
    "no card": ({"devices": 0}, "target 'cuda' cannot run here: the NVIDIA driver finds no GPU: see nvidia-smi"),
    "old driver": (
        {"driver": 12080},
        "onnxruntime 1.31.1 is built for CUDA 13 and the NVIDIA driver goes up to 12.8: update the driver",
    ),
    "small card": ({"memory": 100000}, "GPU 0 (Stand-in H100) has too little memory for "),
    "old card": (
        {"capability": "5.2"},
        "onnxruntime 1.31.1 holds no code for GPU 0 (Stand-in H100) of compute capability 5.2",
    ),
}


@pytest.mark.parametrize(("settings", "sentence"), ABSENT.values(), ids=list(ABSENT))
def test_what_the_machine_lacks_is_one_sentence(
    stand_in: StandIn, folder: Path, tmp_path: Path, settings: dict[str, Any], sentence: str
):
    lines = f"bundle = Bundle({str(folder)!r}, target='cuda')\nbundle.run(draw(bundle, 1, 4))"
    ran = program(stand_in, lines, tmp_path / "log", **settings)
    assert sentence in ran.refused
    assert (ran.said, ran.printed) == ([], "")


@pytest.mark.parametrize("name", ["libcudnn.so.9", "libcublas.so.13", "libcuda.so.1"])
def test_a_library_that_is_missing_is_named(stand_in: StandIn, folder: Path, tmp_path: Path, name: str):
    lame = replaced(stand_in, libraries=Path(shutil.copytree(stand_in.libraries, tmp_path / "libraries")))
    (lame.libraries / name).unlink()
    lines = f"bundle = Bundle({str(folder)!r}, target='cuda')\nbundle.run(draw(bundle, 1, 4))"
    ran = program(lame, lines, tmp_path / "log")
    assert ran.refused.startswith("target 'cuda' cannot run here: ")
    assert name in ran.refused
    assert ran.printed == ""


def test_where_there_is_no_gpu_the_cpu_variant_runs(stand_in: StandIn, folder: Path, tmp_path: Path):
    lines = f"bundle = Bundle({str(folder)!r})\nsaid.append(bundle.variant.name)"
    assert program(stand_in, lines, tmp_path / "log", devices=0).said == ["cpu"]


def test_devices_and_memory_are_chosen(stand_in: StandIn, folder: Path, tmp_path: Path):
    ran = program(
        stand_in,
        f"""
bundle = Bundle({str(folder)!r}, device=1, memory_limit=123456789)
bundle.run(draw(bundle, 1, 4))
options = bundle.session.get_provider_options()["CUDAExecutionProvider"]
said += [options["device_id"], options["gpu_mem_limit"], options["arena_extend_strategy"]]
said.append(Bundle({str(folder)!r}, target="cuda", device=2).lacks(bundle.variant))
Bundle({str(folder)!r}, memory_limit=10000).run(draw(bundle, 1, 4))
""",
        tmp_path / "log",
        devices=2,
    )
    assert ran.said[:3] == ["1", "123456789", "kSameAsRequested"]
    assert ran.said[3] == (
        "target 'cuda' cannot run here: there is no GPU 2: this process sees GPUs 0 to 1, choose device there"
    )
    assert "has too little memory for" in ran.refused


def test_a_node_that_onnxruntime_gives_to_the_cpu_is_named(stand_in: StandIn, tmp_path: Path):
    """No kernel on a GPU multiplies unsigned bytes."""
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[b, 4] x) => (float[b, 1] y) <uint8[4, 1] w = {1, 2, 3, 4}>
        { q, scale, zero = DynamicQuantizeLinear(x)  z = MatMulInteger(q, w, zero)  y = Cast <to = 1> (z) }"""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"the {node.op_type}"
    onnx.save(model, tmp_path / "model.onnx")
    lines = f"""
from pathlib import Path
from coda_targets import get_runtime
from coda_targets.runtimes.session import open_session
open_session(Path({str(tmp_path / "model.onnx")!r}), get_runtime("cuda"))
"""
    refused = program(stand_in, lines, tmp_path / "log").refused
    assert refused.startswith("target 'cuda' cannot run the model: onnxruntime 1.31.1 gives node 'the ")
    assert "to CPUExecutionProvider, where its CUDAExecutionProvider has no kernel for it" in refused


def test_what_copies_in_a_run_is_no_cuda_graph(stand_in: StandIn, tmp_path: Path):
    text = """<ir_version: 9, opset_import: ["" : 20]> g (int64[b, 2] x) => (int64[b, 2] y)
        { sizes = Shape(x)  halves = Div(sizes, sizes)  y = Mul(x, halves) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    lines = f"""
from dataclasses import replace
from pathlib import Path
from coda_targets import get_runtime
from coda_targets.runtimes.session import open_session
path, runtime = Path({str(tmp_path / "model.onnx")!r}), get_runtime("cuda")
said.append(open_session(path, runtime).get_providers()[0])
open_session(path, replace(runtime, cuda_graph=True))
"""
    ran = program(stand_in, lines, tmp_path / "log")
    assert ran.said == ["CUDAExecutionProvider"]
    assert ran.refused.endswith(
        "cannot be captured as a CUDA graph, as the CPU takes part in a run: leave cuda_graph out"
    )


def test_the_stand_in_cannot_pass_for_a_card(stand_in: StandIn, folder: Path, tmp_path: Path):
    """Nothing is computed there, and verifying finds that."""
    environment = stand_in.environment()
    own = [
        str(path) for path in map(Path, sys.path) if (path / "coda_targets").is_dir() or (path / "coda_ops").is_dir()
    ]
    own += [str(path) for path in map(Path, sys.path) if (path / "coda_compile").is_dir()]
    environment["PYTHONPATH"] = ":".join([environment["PYTHONPATH"], *own])
    command = [sys.executable, "-m", "coda_compile", "verify", str(folder), "--target", "cuda"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "verification failed on input" in done.stderr
    assert Bundle(folder).manifest.variants[0].ran is False
