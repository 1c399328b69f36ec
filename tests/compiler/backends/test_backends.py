"""Backends: found by the file that they lie in, each with passes that its own checker accepts."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.conftest import tiny_coda

import coda_compile.backends
from coda_compile import CompileOptions, compile
from coda_compile.backends import Backend, backend_names, get_backend, ready_backend
from coda_compile.backends.cpu import OnnxruntimeBackend
from coda_compile.errors import CompileError
from coda_compile.passes import Pass, pass_name, run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_models import CodaConfig
from coda_targets import Runtime, TargetError, get_runtime, runtime_names

FILES = sorted(path.stem for path in Path(coda_compile.backends.__file__).parent.glob("*.py"))
NAMES = [*backend_names(), "null"]
HELPERS = [
    "__init__",
    "cuda_kernels",
    "openvino_rounding",
    "operators",
    "tensorrt_engines",
    "tensorrt_operators",
    "typed_nodes",
]
CPU = get_backend("cpu")


def test_every_file_is_a_backend_or_helps_one():
    assert sorted([*(name.replace("-", "_") for name in NAMES), *HELPERS]) == FILES
    assert backend_names() == runtime_names()


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_is_what_its_file_says(name: str):
    backend = get_backend(name)
    assert isinstance(backend, Backend)
    assert backend is importlib.import_module(f"coda_compile.backends.{name.replace('-', '_')}").BACKEND
    assert backend.name == name
    assert backend.runtime is get_runtime(name)
    assert backend.precisions[0] == "fp32"
    with pytest.raises(dataclasses.FrozenInstanceError):
        backend.opset = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["", "gpu", "CPU", *HELPERS, "coda_compile.backends.cpu", "../cpu"])
def test_unknown_backend_lists_the_known(name: str):
    with pytest.raises(
        TargetError, match=r"is unknown: use one of cpu, cuda, openvino, tensorrt, tensorrt-rtx$"
    ) as caught:
        get_backend(name)
    assert repr(name) in str(caught.value)


def test_a_backend_is_ready_by_name_or_as_it_is_or_refused():
    assert ready_backend("cpu") == ready_backend(CPU) == CPU
    with pytest.raises(TargetError, match=r"target 'abacus' is unknown"):
        ready_backend("abacus")
    absent = dataclasses.replace(CPU, runtime=dataclasses.replace(CPU.runtime, providers=(("Absent", {}),)))
    with pytest.raises(TargetError, match=r"target 'cpu' cannot run here: Absent is not installed"):
        ready_backend(absent)


@pytest.mark.parametrize("name", ["cpu", "null"])
def test_parity_is_measured_on_function_bodies_on_a_cpu(name: str):
    verified = get_backend(name).verified_on()
    assert verified.name == name
    assert verified.runtime.providers == CPU.runtime.providers
    assert not verified.runtime.kernels
    assert dataclasses.replace(verified, runtime=get_runtime(name)) == get_backend(name)


def test_what_runs_on_a_device_that_is_absent_is_verified_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    backend = dataclasses.replace(CPU, runtime=get_runtime("cuda"))
    monkeypatch.setattr("coda_compile.backends.require_runtime", refuse)
    assert ready_backend(backend) is backend  # compiling needs no device
    verified = backend.verified_on()
    assert verified.name == "cuda"
    assert verified.runtime == dataclasses.replace(CPU.runtime, name="cuda", kernels="")
    assert backend.with_kernels() is None
    monkeypatch.setattr("coda_compile.backends.require_runtime", lambda runtime: None)
    assert backend.verified_on(kernels=True) == backend


def refuse(runtime: Runtime) -> None:
    if runtime.device != "cpu":
        raise TargetError(f"no device for {runtime.name}")


def test_kernels_are_verified_where_they_serve_and_are_built(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.backends.usable_kernels", lambda name: Path(f"{name}.so"))
    assert CPU.with_kernels() == CPU.verified_on(kernels=True)
    assert CPU.verified_on(kernels=True).runtime.kernels == "cpu"
    assert get_backend("null").with_kernels() is get_backend("openvino").with_kernels() is None
    monkeypatch.setattr("coda_compile.backends.usable_kernels", lambda name: None)
    assert CPU.with_kernels() is None


@pytest.mark.parametrize("name", NAMES)
def test_what_passes_make_is_accepted_and_well_formed(name: str, raw: ir.Model):
    backend = get_backend(name)
    with pytest.raises(CompileError, match=rf"^target '{name}' knows no operator ai\.coda::"):
        backend.check(raw)
    reports = run_passes(raw, backend.passes())
    assert [report.name for report in reports] == [pass_name(one) for one in backend.passes()]
    backend.check(raw)
    onnx.checker.check_model(ir.to_proto(raw), full_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_passes_leave_other_graphs_alone(name: str, plain: Callable[[], ir.Model]):
    model = plain()
    assert not any(report.modified for report in run_passes(model, get_backend(name).passes()))
    get_backend(name).check(model)


@pytest.mark.parametrize("name", NAMES)
def test_passes_are_made_anew_for_each_graph(name: str):
    first, second = get_backend(name).passes(), get_backend(name).passes()
    assert not {id(one) for one in first} & {id(one) for one in second}


class Bodiless(OnnxruntimeBackend):
    """Forgets the function bodies."""

    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        return [one for one in super().passes(pack=pack, half=half) if not isinstance(one, AttachFunctions)]


def test_what_the_runtime_cannot_run_is_refused_before_it_is_tried(tmp_path: Path):
    backend = Bodiless(CPU.runtime, CPU.opset, CPU.precisions)
    with pytest.raises(CompileError, match=r"^target 'cpu' knows no operator ai\.coda::\w+, as node '.*' of the graph"):
        compile(tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(target=backend), output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_packed_once_projections_are_one_linear():
    names = [pass_name(one) for one in CPU.passes(pack=True)]
    assert names.index("pack_rows") - 1 == names.index("fuse_projections")
    names.remove("pack_rows")
    assert names == [pass_name(one) for one in CPU.passes()]
    assert [name for name in NAMES if get_backend(name).packs_rows] == ["cpu", "cuda", "null"]


def test_gates_in_float32_are_allowed_what_it_loses():
    scores = np.array([-1, 1], np.float32)
    assert CPU.gate_tolerance(scores, 0.03) == 0
    assert get_backend("openvino").gate_tolerance(scores, 0.03) == pytest.approx(1.59e-5, rel=1e-2)
