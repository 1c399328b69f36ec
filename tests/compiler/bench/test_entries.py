"""Who takes part: on a GPU compiled models twice, the dense model compiled too, and baselines of that device alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.conftest import tiny_coda

from coda_compile.backends import get_backend
from coda_compile.bench import baselines, table
from coda_compile.bench.baselines import BASELINES, UNMEASURED, Baseline, DenseAdapter
from coda_compile.bench.plan import Plan
from coda_compile.bench.result import BenchResult
from coda_compile.bench.run import bench
from coda_compile.bench.turns import Contender, Timings
from coda_compile.errors import CodaError
from coda_models import CodaConfig
from coda_targets import get_runtime
from coda_targets.runtimes import DEFAULT_TARGET, GPU
from coda_targets.signature import Arrays

SECONDS = {"coda-compile": 1e-4, "dense, compiled here": 2e-4, "rival": 3e-4}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """Target null is a GPU on which nothing is really timed; gives the contenders that were asked for."""
    get_backend("null")  # or its file might be imported while this lasts, and keep the runtime
    runtime = replace(get_runtime(DEFAULT_TARGET), name="null", device=GPU, kernels="", captures=True)
    monkeypatch.setattr("coda_targets.runtimes.null.RUNTIME", runtime)
    monkeypatch.setattr("coda_targets.runtimes.nvidia.require", lambda runtime: None)
    monkeypatch.setattr("coda_targets.runtimes.session.check_placement", lambda session, runtime: None)
    monkeypatch.setattr(baselines, "BASELINES", (BASELINES[0], Baseline("rival", "fp16", "", _rival, GPU)))
    asked: list[Contender] = []

    def timed(contenders: Sequence[Contender], inputs: Sequence[Arrays], **options: object) -> dict[str, Timings]:
        asked.extend(contenders)
        return {one.name: _timings(one.name, len(inputs), int(str(options["rounds"]))) for one in contenders}

    monkeypatch.setattr("coda_compile.bench.run.in_turns", timed)
    return asked


def _rival(dense: DenseAdapter) -> tuple[Contender, list]:
    return Contender("rival", "onnx_on_gpu", {}), []


def _timings(name: str, inputs: int, rounds: int) -> Timings:
    seconds = next(value for start, value in SECONDS.items() if name.startswith(start))
    return Timings(0.1, first=[seconds] * inputs, runs=[[[seconds]] * rounds for _ in range(inputs)], peak_bytes=1)


def measure(**options: object) -> BenchResult:
    plan = replace(Plan(targets=("null",), precisions=("fp32",), rounds=4, threads=1), **options)
    return bench(tiny_coda("bert", CodaConfig(reduction=4)), plan=plan)


def test_on_a_gpu_everyone_runs_plainly_and_as_graphs(gpu: list[Contender], capsys: pytest.CaptureFixture[str]):
    result = measure()
    compiled = ["coda-compile r=4 null", "coda-compile r=4 null CUDA graph"]
    dense = ["dense, compiled here fp32 null", "dense, compiled here fp32 null CUDA graph"]
    assert [one.name for one in gpu] == [*compiled, *dense, "rival"]
    assert [one.arguments.get("cuda_graph", False) for one in gpu] == [False, True, False, True, False]
    assert {(m.batch, m.tokens) for m in result.measurements} == {(1, 66), (8, 66), (32, 66)}
    assert (result.bounds, result.matrix_rates) == ((), {})  # those are of a CPU
    for m in result.measurements:
        assert set(m.speed_up) == (set() if m.contender in compiled else {"4 null", "4 null CUDA graph"})
    (rival,) = (m for m in result.measurements if (m.contender, m.batch) == ("rival", 8))
    assert rival.speed_up["4 null CUDA graph"].middle == pytest.approx(3)
    table.show(result)
    assert "0.100" in capsys.readouterr().out  # of a millisecond, and not 0.1


def test_rivals_that_cannot_run_are_named(gpu: list[Contender], capsys: pytest.CaptureFixture[str]):
    result = measure(skip=("dense, compiled here",))
    assert not any(one.name.startswith("dense") for one in gpu)
    assert result.skipped == UNMEASURED
    table.show(result)
    shown = capsys.readouterr().out
    for one in ("TensorRT fp16, int8 and fp8", "text-embeddings-inference"):
        assert f"not measured: {one}: " in shown


def test_baselines_of_a_cpu_do_not_run_beside_gpus(gpu: list[Contender]):
    measure()
    assert BASELINES[0].name not in {one.name for one in gpu}
    assert {one.device for one in BASELINES} == {GPU, get_runtime(DEFAULT_TARGET).device}


def test_in_half_alone_where_nobody_says(gpu: list[Contender]):
    with pytest.raises(CodaError, match="there is nothing to compile in"):
        measure(precisions=())  # null compiles as for a CPU, which has no precision of 16 bits
