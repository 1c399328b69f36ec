"""A million calls of the native kernels' loops under sanitizers, and models that somebody means harm with."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.contracts.test_types import GENERIC, SAMPLES, inputs_of
from tests.ops.test_native_limits import EMBED, ROUTE, ROUTE_ATTRIBUTES, int8_linear, open_kernel

from coda_ops import cpu, native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None or not cpu.is_x86(), reason="needs g++ on x86"),
]
ROOT = Path(__file__).parents[2]
SOURCES = native.HERE / "src"
LOOPS = sorted(
    path
    for path in SOURCES.glob("*.cc")
    if "operators" not in path.name and path.name not in ("library.cc", "older_glibc.cc")
)
FLAGS = ["-std=c++17", "-O1", "-g1", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", f"-I{SOURCES}"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ISAS = ["baseline", "avx2", "avx-vnni", "avx512", "avx512-vnni", "amx-int8"]
CALLS = 1_000_000


def compile_object(source: Path, folder: Path) -> Path:
    made = folder / f"{source.stem}.o"
    subprocess.run(["g++", *FLAGS, "-c", str(source), "-o", str(made)], check=True, capture_output=True, text=True)
    return made


def link(objects: list[Path], program: Path) -> Path:
    subprocess.run(["g++", *FLAGS, *map(str, objects), "-o", str(program)], check=True, capture_output=True, text=True)
    return program


def fuzz(program: Path, calls: int, isa: str = "avx2", seed: int = 0) -> subprocess.CompletedProcess[str]:
    """Calls on no newer instructions than ``isa``."""
    environment = {**os.environ, "CODA_ISA": isa, "ASAN_OPTIONS": "detect_leaks=0"}  # which needs ptrace
    command = [str(program), str(seed), str(calls)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every loop, and the calls, compiled with sanitizers; by name."""
    folder = tmp_path_factory.mktemp("sanitized")
    return {path.stem: compile_object(path, folder) for path in (*LOOPS, Path(__file__).parent / "native_fuzz/fuzz.cc")}


@pytest.mark.parametrize("isa", ISAS)
def test_a_million_calls_stay_within_their_memory(isa: str, objects: dict[str, Path], tmp_path: Path):
    calls = CALLS // len(ISAS) + 1
    done = fuzz(link(list(objects.values()), tmp_path / "fuzz"), calls, isa, ISAS.index(isa))
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout == f"{calls} calls\n"


FAULTS = {
    "keys without padding": ("attention", "head.width * padded(head.tokens)", "head.width * head.tokens"),
    "a bias of padding": ("attention", "head.bias_stride, head.scale, tokens)", "head.bias_stride, head.scale, columns)"),
    "columns for width": ("adapter", "i < w.width; ++i) to[i]", "i < w.columns; ++i) to[i]"),
    "garbage in padding": ("adapter", "room.assign(static_cast<size_t>(tall * wide), 0.0f)", "room.resize(tall * wide)"),
    "rows that touch": ("gelu", "for (int64_t i = 0; i < n; ++i) values[i]", "for (int64_t i = 0; i < stride; ++i) values[i]"),
    "a slot that is left out": ("route", "idle = k;", "idle = k + 1;"),
    "a slot too many": ("route", "if (chosen[i] != 0)", "if (chosen[i] != 3)"),
    "scales of outputs alone": (
        "int8_linear",
        "scale_.assign(static_cast<size_t>(panels_ * kPanel), 0.0f)",
        "scale_.assign(static_cast<size_t>(outputs), 0.0f)",
    ),
    "a row of inputs alone": ("int8_linear", "room * depth_ * kernel_", "room * inputs_ * kernel_"),
    "a norm that begins late": ("norm", "i = 0; i < width; ++i) {\n    out[i] = x[i]", "i = 1; i < width; ++i) {\n    out[i] = x[i]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, objects: dict[str, Path], tmp_path: Path):
    name, right, wrong = FAULTS[fault]
    text = (SOURCES / f"{name}.cc").read_text("utf-8")
    assert text.count(right) == 1
    planted = tmp_path / f"{name}.cc"
    planted.write_text(text.replace(right, wrong), "utf-8")
    changed = {**objects, name: compile_object(planted, tmp_path)}
    done = fuzz(link(list(changed.values()), tmp_path / "fuzz"), 20_000)
    assert done.returncode != 0
    assert re.search(r"AddressSanitizer|runtime error|fuzz: ", done.stderr), done.stderr[:4000]


LENGTHS = [0, 1, 2, 3, 5, 8, 17, 64]
VALUES = [0, 1, -1, 2, 3, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63), 0.0, 0.5, -1e-5, 3e38, math.nan, math.inf]
VALUES += ["text", [1, 2], [0.5]]
INT8 = {**int8_linear(8, 17), "x": np.ones((1, 3, 8), np.float32)}
CONSTANTS = ("weight", "scale", "bias")
KERNELS = {
    **{one.name: (inputs_of(one, SAMPLES[one.name], np.float32), SAMPLES[one.name].attributes) for one in GENERIC},
    "Route": (ROUTE, ROUTE_ATTRIBUTES),
    "EmbedNorm": (EMBED, {"epsilon": 1e-5}),
    "Int8Linear": (INT8, {}),
    "Int8LinearGelu": (INT8, {}),
}
del KERNELS["Adapter"]  # which has none


def distorted(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """An array of another length along one axis, of another rank, or of other numbers."""
    shape = list(array.shape)
    kind = rng.integers(4)
    if kind == 0 and shape:
        shape[rng.integers(len(shape))] = int(rng.choice(LENGTHS))
    elif kind == 1 and shape:
        del shape[rng.integers(len(shape))]
    elif kind == 2:
        shape.insert(rng.integers(len(shape) + 1), int(rng.choice(LENGTHS)))
    if array.dtype == np.int64:
        return rng.choice([0, 1, -1, 3, 17, 2**40, -(2**63)], size=shape).astype(np.int64)
    if array.dtype in (np.bool_, np.uint8):
        return rng.integers(0, 2 if array.dtype == np.bool_ else 256, size=shape).astype(array.dtype)
    return rng.choice([0, -1, 0.5, 3e38, math.inf, -math.inf, math.nan], size=shape).astype(array.dtype)


def harmful_models(seed: int, count: int) -> None:
    """Open and run one-node models that are a little wrong: each runs, or is refused by a sentence that names the node."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        name = str(rng.choice(list(KERNELS)))
        inputs, attributes = ({**part} for part in KERNELS[name])
        for _ in range(rng.integers(1, 4)):
            if attributes and rng.random() < 0.4:
                attributes[str(rng.choice(list(attributes)))] = VALUES[rng.integers(len(VALUES))]
            else:
                key = str(rng.choice(list(inputs)))
                inputs[key] = distorted(rng, inputs[key])
        constants = CONSTANTS if name.startswith("Int8") else ()
        said = run_or_refused(name, inputs, attributes, constants, fixed=bool(rng.integers(2)))
        assert not said or re.search(rf"{name}: [\w ]+|INVALID_GRAPH", said), (name, attributes, said)
        assert "\n" not in said.strip(), said
        assert "vector::" not in said, said


def run_or_refused(name, inputs, attributes, constants, *, fixed):
    """What is said of a model that does not run."""
    try:
        session = open_kernel(name, inputs, attributes, constants, fixed=fixed)
        session.run(None, {key: x for key, x in inputs.items() if key not in constants})
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        return str(error)
    return ""


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
@pytest.mark.parametrize("seed", range(4))
def test_models_that_mean_harm_run_or_are_refused(seed: int):
    command = f"from tests.ops.test_native_fuzz import harmful_models; harmful_models({seed}, 2500)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
