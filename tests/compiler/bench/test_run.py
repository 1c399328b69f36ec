"""bench() on a tiny model: everyone measured or named, and what the result says of itself."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from tests.compiler.exports import lora_classifier, write
from tests.conftest import tiny_coda
from tests.targets.test_manifest import edit_variant

from coda_compile import CompileOptions, compile
from coda_compile.bench import table
from coda_compile.bench.baselines import BASELINES, Baseline, DenseAdapter, build_baseline, int8_instructions
from coda_compile.bench.machine import this_machine
from coda_compile.bench.plan import Plan
from coda_compile.bench.result import BenchResult, Skipped, read_result
from coda_compile.bench.run import bench
from coda_compile.bench.turns import Timings
from coda_compile.errors import CodaError
from coda_models import CodaConfig
from coda_targets import Bundle
from coda_targets.fidelity import Fidelity, Figure

QUICK = Plan(tokens=(8, 40), rounds=4, threads=1, skip=("torch.compile", "OpenVINO", "OpenVINO int8"))


@pytest.fixture(scope="module")
def result() -> BenchResult:
    rounds: list[int] = []
    model = tiny_coda("bert", CodaConfig(reduction=4))
    plan = Plan(("2", "1,4"), (1, 2), QUICK.tokens, QUICK.precisions, QUICK.rounds, 1, QUICK.skip)
    measured = bench(model, plan=plan, name="tiny", command="how", on_round=lambda: rounds.append(1))
    assert len(rounds) == 4 * 4
    assert model.coda_config.reduction == 4  # the caller's model is as it was
    return measured


def test_everyone_is_measured_on_every_input(result: BenchResult):
    seen = {(m.contender, m.batch, m.tokens) for m in result.measurements}
    dense = {"torch eager", "onnxruntime", "optimum O3", "optimum int8"}
    compiled = {f"coda-compile r={r}{precision}" for r in ("2", "1,4") for precision in ("", " int8")}
    names = {*compiled, *dense}
    assert seen == {(name, batch, tokens) for name in names for batch in (1, 2) for tokens in (8, 40)}
    assert result.skipped == ()
    for m in result.measurements:
        assert len(m.rounds) == 4 <= len(m.seconds)
        assert min(m.opened_seconds, m.first_seconds, m.peak_bytes, m.file_bytes, m.multiply_adds) > 0
        assert m.tokens_per_second == pytest.approx(m.batch * m.tokens / m.summary.median)
        assert set(m.speed_up) == ({"2", "1,4", "2 int8", "1,4 int8"} if m.contender in dense else set())
    assert set(result.matrix_rates) == {"fp32", "int8"}


def test_static_activations_are_calibrated_with_the_ids_that_nncf_gets():
    plan = replace(QUICK, tokens=(8,), precisions=("int8-static",), skip=(*QUICK.skip, "optimum int8"))
    (measured,) = bench(tiny_coda("bert", CodaConfig(reduction=4)), plan=plan).measurements
    assert (measured.contender, measured.precision) == ("coda-compile r=4 int8-static", "int8-static")


def test_bounds_are_those_of_the_cost_model(result: BenchResult):
    assert len(result.bounds) == 2 * 4
    for bound in result.bounds:
        (own,) = (
            m
            for m in result.measurements
            if (m.contender, m.batch, m.tokens) == (f"coda-compile r={bound.reduction}", bound.batch, bound.tokens)
        )
        (dense,) = (
            m
            for m in result.measurements
            if (m.contender, m.batch, m.tokens) == ("onnxruntime", bound.batch, bound.tokens)
        )
        assert bound.ratio == pytest.approx(dense.multiply_adds / own.multiply_adds)
        assert bound.ratio > 1
        assert bound.reached == pytest.approx(dense.speed_up[bound.reduction].middle / bound.ratio)
        assert bound.rate == pytest.approx(own.multiply_adds / own.summary.median / result.matrix_rates["fp32"])


def test_a_result_survives_its_file(result: BenchResult, tmp_path: Path):
    path = tmp_path / "bench.json"
    path.write_text(result.dump(), "utf-8")
    assert read_result(path) == result


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 9}', "schema version 9, this release reads a benchmark result of version 1"),
        ('{"schema_version": 1}', "is damaged: object missing required field `command`; measure again"),
    ],
)
def test_damaged_results_are_refused(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "bench.json"
    with pytest.raises(CodaError, match="does not exist: make it with"):
        read_result(path)
    path.write_text(text)
    with pytest.raises(CodaError, match=sentence):
        read_result(path)


@pytest.mark.parametrize("field", ["threads", "measurements", "machine", "matrix_rates", "bounds"])
def test_values_that_make_no_sense_are_refused(result: BenchResult, tmp_path: Path, field: str):
    path = tmp_path / "bench.json"
    for nonsense in ("many", [], {"fp32": "fast"}, None):
        path.write_text(json.dumps({**json.loads(result.dump()), field: nonsense}))
        if (field, nonsense) == ("bounds", []):
            continue  # a benchmark without a dense model has none
        with pytest.raises(CodaError, match=r"is damaged|holds no measurements"):
            read_result(path)


def test_variants_are_shown_over_one_of_them(capsys: pytest.CaptureFixture[str]):
    def timed(*seconds: float) -> Timings:
        return Timings(0.0, runs=[[[one] for one in seconds]])

    table.variants("1 x 8", {"whole": timed(1.0, 1.0, 1.0, 1.0), "without": timed(2.0, 2.0, 2.0, 2.0)}, "whole")
    _, header, whole, without = capsys.readouterr().out.strip().splitlines()
    assert "time over whole" in header
    assert whole.split() == ["whole", "1000.0", "ms"]
    assert without.endswith("2000.0 ms  2.00x [2.00, 2.00]")


def test_conditions_stand_beside_variants(capsys: pytest.CaptureFixture[str]):
    table.conditions(7, 1)
    shown = capsys.readouterr().out
    assert shown.startswith("medians of 7 rounds in turns, a process each, 1 threads; ")
    assert this_machine().cpu in shown


def test_the_table_holds_everyone(result: BenchResult, capsys: pytest.CaptureFixture[str]):
    table.show(result)
    text = capsys.readouterr().out
    for m in result.measurements:
        assert f"{m.contender} " in text
    assert text.count("tokens, ms") == 4
    assert "multiply-adds bound" in text
    assert "…" not in text  # no figure is cut short


def test_no_table_is_wider_than_a_terminal(result: BenchResult, capsys: pytest.CaptureFixture[str]):
    table.show(result)
    lines = [line for line in capsys.readouterr().out.splitlines() if "x [" in line]
    assert len(lines) == 4 * 4 * 4  # inputs, dense contenders, compiled variants
    assert max(map(len, lines)) <= 120
    few = [replace(m, speed_up={k: v for k, v in m.speed_up.items() if k == "2"}) for m in result.measurements]
    one = [m for m in few if m.speed_up or m.contender == "coda-compile r=2"]
    table.show(replace(result, measurements=tuple(one)))
    header = next(line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line)
    assert header.endswith("r=2 is faster")


def test_noise_is_told(result: BenchResult, capsys: pytest.CaptureFixture[str]):
    quiet = [replace(m, summary=replace(m.summary, spread=0.02)) for m in result.measurements]
    table.show(replace(result, measurements=tuple(quiet)))
    assert "noise" not in capsys.readouterr().out
    loud = replace(quiet[3], summary=replace(quiet[3].summary, spread=0.34))
    table.show(replace(result, measurements=(*quiet[:3], loud, *quiet[4:])))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("noise: ")]
    assert f"runs of {loud.contender}" in line
    assert "34% of the median apart" in line


def test_what_a_routed_model_keeps_stands_above_its_latency(result: BenchResult, capsys: pytest.CaptureFixture[str]):
    assert result.fidelity is None
    found = Fidelity((Figure("accuracy", 0.9, 0.8, 0.95, 0.92),), 40, 12, 200)
    table.show(replace(result, fidelity=found))
    assert f"before it was compiled: {found}" in " ".join(capsys.readouterr().out.split())


def test_one_core_is_labelled(result: BenchResult, capsys: pytest.CaptureFixture[str]):
    told = "one core: whatever else runs lands in these timings"
    for cores in (1, 2):
        table.show(replace(result, machine=replace(result.machine, cores=cores)))
        assert (told in capsys.readouterr().out) == (cores == 1)


def test_a_bundle_is_measured_as_it_is(compiled: Bundle, capsys: pytest.CaptureFixture[str]):
    measured = bench(compiled, plan=Plan(tokens=(8,), rounds=4, threads=1))
    assert [m.contender for m in measured.measurements] == ["coda-compile r=2"]
    assert measured.bounds[0].reached is None
    table.show(measured)
    assert "not measured: dense baselines: a bundle holds no dense model; give its model too" in capsys.readouterr().out
    with pytest.raises(CodaError, match="a bundle has one r only"):
        bench(compiled, plan=Plan(reductions=("2",)))


def test_variants_of_a_bundle_are_chosen(tmp_path: Path):
    options = CompileOptions(precision=("fp32", "int8"))
    bundle = compile(tiny_coda("bert", CodaConfig(reduction=2)), options, output=tmp_path / "both")
    plan = Plan(tokens=(8,), rounds=4, threads=1)

    def measured(**chosen: tuple[str, ...]) -> list[str]:
        return [m.contender for m in bench(bundle, plan=replace(plan, **chosen)).measurements]

    assert measured(precisions=("int8",)) == ["coda-compile r=2 int8"]
    assert measured(precisions=("int8", "fp32"), targets=("cpu",)) == ["coda-compile r=2 int8", "coda-compile r=2"]
    with pytest.raises(CodaError, match="has no variant int4: it has cpu fp32, cpu int8"):
        measured(precisions=("int4",))


def test_precisions_that_no_target_has_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.bench.plan.require_runtime", lambda runtime: None)
    with pytest.raises(
        CodaError, match="there is nothing to compile in int4: use a precision of fp32, int8, int8-static"
    ):
        bench(tiny_coda("bert"), plan=Plan(targets=("openvino",), precisions=("int4",)))


def test_a_variant_that_cannot_run_here_is_refused_before_anything_else(copied: Path):
    edit_variant(copied, target="null")
    with pytest.raises(CodaError, match="target 'null' cannot run here"):
        bench(Bundle(copied), plan=QUICK)


def test_what_was_measured_is_known_whatever_it_was_compiled_to(compiled: Bundle, tmp_path: Path):
    plan = Plan(
        tokens=(4,), rounds=4, threads=1, precisions=("fp32",), reductions=("4",), skip=tuple(b.name for b in BASELINES)
    )
    measured = bench(tiny_coda("bert", CodaConfig(reduction=2)), plan=plan)
    assert measured.model_sha256 == compiled.manifest.model_sha256
    rounded = compile(
        tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(precision="int8"), output=tmp_path / "int8"
    )
    assert rounded.manifest.model_sha256 == compiled.manifest.model_sha256
    other = tiny_coda("bert", CodaConfig(reduction=2), seed=1)
    with pytest.raises(CodaError, match="was compiled from another model than the one to compare it with"):
        bench(compiled, dense=other, plan=Plan(tokens=(4,), rounds=4, threads=1))


def test_a_graph_whose_layers_nobody_knows_has_no_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = compile(write(lora_classifier(), tmp_path / "lora"), output=tmp_path / "bundle")
    measured = bench(bundle, plan=Plan(tokens=(8,), rounds=4, threads=1))
    assert [m.contender for m in measured.measurements] == ["coda-compile r=1"]
    assert (measured.bounds, measured.matrix_rates) == ((), {})
    table.show(measured)
    assert "matrix product" not in capsys.readouterr().out


def test_a_damaged_bundle_is_not_measured(copied: Path):
    (copied / "model.onnx").write_bytes(b"")
    with pytest.raises(CodaError, match="is damaged"):
        bench(Bundle(copied), plan=QUICK)


def test_impossible_lengths_are_refused(compiled: Bundle):
    with pytest.raises(CodaError, match="99 tokens are more than this model takes: give at most 66"):
        bench(compiled, plan=Plan(tokens=(8, 99)))


def _absent(dense: DenseAdapter) -> None:
    raise ModuleNotFoundError("No module named 'openvino'", name="openvino")


def _broken(dense: DenseAdapter) -> None:
    raise ValueError("first line\nsecond line")


@pytest.mark.parametrize(
    ("builder", "skipped"),
    [
        (_absent, Skipped("x", "openvino is not installed", "pip install x")),
        (_broken, Skipped("x", "ValueError: first line", "")),
    ],
)
def test_what_is_not_installed_or_fails_is_named(builder, skipped: Skipped, tmp_path: Path):
    assert (
        build_baseline(Baseline("x", "fp32", "pip install x", builder), DenseAdapter(tiny_coda("bert"), tmp_path))
        == skipped
    )


def test_the_dense_export_is_plain_onnx(tmp_path: Path):
    model = onnx.load(DenseAdapter(tiny_coda("bert", CodaConfig(reduction=4)), tmp_path).onnx)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node}.isdisjoint({"TopK", "GatherElements", "ScatterND"})


def test_every_optional_baseline_says_how_to_install_it():
    assert {b.name: bool(b.install) for b in BASELINES} == {
        "torch eager": False,
        "torch.compile": False,
        "onnxruntime": False,
        "optimum O3": True,
        "optimum int8": True,
        "OpenVINO": True,
        "OpenVINO int8": True,
        "torch eager fp16": False,
        "torch.compile fp16": False,
        "onnxruntime fp16": False,
        "onnxruntime fp16 CUDA graph": False,
    }


@pytest.mark.parametrize(
    ("available", "preset"),
    [(("avx2", "avx512f", "avx512_vnni"), "avx512_vnni"), (("avx512f",), "avx512"), (("avx2",), "avx2"), ((), "arm64")],
)
def test_int8_fits_the_machine(available: tuple[str, ...], preset: str):
    assert int8_instructions(available) == preset


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch.compile", "OpenVINO", "OpenVINO int8"])
def test_heavy_baselines_run_where_they_are_installed(name: str):
    others = tuple(b.name for b in BASELINES if b.name != name)
    model = tiny_coda("bert", CodaConfig(reduction=4))
    measured = bench(model, plan=Plan(tokens=(8,), rounds=4, threads=1, skip=others))
    assert measured.skipped == ()
    assert name in {m.contender for m in measured.measurements}
