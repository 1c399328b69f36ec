"""What is asked of a machine with a GPU, on a CPU that stands in for it: right results pass, and wrong ones do not."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from tests.cuda_stand_in.build import StandIn
from tests.targets.test_manifest import edit_variant

from coda_targets import Bundle, get_runtime
from coda_targets.routing import Decision
from coda_targets.runtimes import DEFAULT_TARGET, GPU

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu_check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cpu_as_gpu(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose variant is for a GPU, which the CPU stands in for."""
    runtime = replace(get_runtime(DEFAULT_TARGET), name="null", device=GPU)
    monkeypatch.setattr("coda_targets.runtimes.null.RUNTIME", runtime)
    monkeypatch.setattr("coda_targets.runtimes.nvidia.require", lambda runtime: None)
    monkeypatch.setattr("coda_targets.runtimes.session.check_placement", lambda session, runtime: None)
    edit_variant(copied, target="null")
    return copied


def decision(**changes: object) -> Decision:
    plain = {
        "layer": 0,
        "scores": np.array([[0.5, -1.0, 2.0]], np.float32),
        "indices": np.array([[0, 2]]),
        "gates": np.array([[0.9, 1.0]], np.float32),
        "used": np.array([[True, True]]),
    }
    return Decision(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, None),
        ({"scores": np.array([[0.5, -1.0, 2.1]], np.float32)}, "scores"),
        ({"scores": np.array([[0.5, np.nan, 2.0]], np.float32)}, "scores"),
        ({"gates": np.array([[0.9, 0.99]], np.float32)}, "gates"),
        ({"gates": np.array([[0.9, np.nan]], np.float32)}, "gates"),
        ({"indices": np.array([[1, 2]])}, "sets"),
        ({"used": np.array([[True, False]])}, "sets"),
    ],
)
def test_each_difference_is_found(check: ModuleType, changes: dict, wrong: str | None):
    outputs = {"logits": np.array([[1.0, 2.0]])}
    mask = np.ones((1, 3), bool)
    found = check.compared(mask, (outputs, [decision(**changes)]), (outputs, [decision()]))
    assert [name for name, value in found.items() if value != 0] == ([] if wrong is None else [wrong])
    assert check.Row("v", "f", "c", **found, limit=1e-4).right == (wrong is None)


def test_outputs_are_compared_where_tokens_count(check: ModuleType):
    mask = np.array([[True, False]])
    wanted, found = np.zeros((1, 2, 4)), np.zeros((1, 2, 4))
    found[0, 1] = 9.0
    assert check.compared(mask, ({"state": found}, []), ({"state": wanted}, []))["outputs"] == 0
    found[0, 0, 3] = 0.25
    assert check.compared(mask, ({"state": found}, []), ({"state": wanted}, []))["outputs"] == 0.25


def test_turns_are_even(check: ModuleType):
    calls: list[str] = []
    found = check.times({name: (lambda name=name: calls.append(name)) for name in "ab"}, rounds=3)
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    assert all(seconds >= 0 for one in found.values() for seconds in one)
    assert set(calls) == {"a", "b"}


def test_right_results_pass_and_are_written(check: ModuleType, cpu_as_gpu: Path, tmp_path: Path):
    output = tmp_path / "out"
    arguments = [str(cpu_as_gpu), "--output", str(output), "--batch", "1", "--tokens", "8", "--rounds", "2"]
    ended = CliRunner().invoke(check.main, arguments, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    result = json.loads((output / "gpu_check.json").read_text("utf-8"))
    assert all(row["right"] for row in result["correctness"])
    assert {row["form"] for row in result["correctness"]} >= {"bodies"}
    assert [len(seconds) for table in result["times"].values() for seconds in table.values()]
    written = (output / "gpu_check.md").read_text("utf-8")
    assert written.strip() == ended.output.strip()
    assert "| 1 x 8 | median, ms |" in written
    assert "WRONG" not in written


def test_wrong_results_fail(check: ModuleType, cpu_as_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the stand-in CUDA gives them: nothing but zeros."""

    def nothing(self, inputs: dict) -> tuple:
        outputs, decisions = self.real(inputs)
        zeros = [replace(one, scores=0 * one.scores, gates=0 * one.gates) for one in decisions]
        return {name: 0 * value for name, value in outputs.items()}, zeros

    monkeypatch.setattr(check.RoutingProbe, "real", check.RoutingProbe.run, raising=False)
    monkeypatch.setattr(check.RoutingProbe, "run", nothing)
    ended = CliRunner().invoke(check.main, [str(cpu_as_gpu), "--output", str(tmp_path / "out"), "--rounds", "0"])
    assert ended.exit_code == 1
    assert "WRONG" in ended.output
    assert "| right |" not in ended.output


def test_a_bundle_for_cpus_alone_is_refused(check: ModuleType, compiled: Bundle):
    ended = CliRunner().invoke(check.main, [str(compiled.folder)])
    assert ended.exit_code == 1
    assert "has no variant for GPUs: compile one with --target" in ended.output


@pytest.mark.slow
def test_on_a_gpu_that_computes_nothing_all_is_wrong(copied: Path, tmp_path: Path, stand_in: StandIn):
    edit_variant(copied, target="cuda")
    command = [sys.executable, str(SCRIPT), str(copied), "--output", str(tmp_path / "out"), "--rounds", "0"]
    log = tmp_path / "log"
    log.touch()
    done = subprocess.run(command, env=stand_in.environment(log=log), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "out/gpu_check.json").read_text("utf-8"))["correctness"]
    assert rows
    assert not any(row["right"] for row in rows)
