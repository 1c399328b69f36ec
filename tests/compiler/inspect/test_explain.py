"""explain: rows that add up, and a table that says what a person asks."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coda_compile.cli import explain_table
from coda_compile.cli.main import main
from coda_compile.inspect.explain import Explanation, explain, layer_ranges
from coda_compile.inspect.profile import Kernel, profile_bundle
from coda_ops import native
from coda_targets import Bundle


@pytest.fixture(scope="module")
def explanation(compiled: Bundle, portable: None) -> Explanation:
    return explain(profile_bundle(compiled, tokens=20, runs=2, threads=1))


def test_rows_add_up_to_the_profile(explanation: Explanation):
    profile = explanation.profile
    assert [row.layer for row in explanation.layers] == [0, 1, None]
    assert sum(row.kernels for row in explanation.layers) == len(profile.kernels)
    assert sum(row.seconds for row in explanation.layers) == pytest.approx(profile.kernel_seconds)
    for row in explanation.layers:
        assert sum(row.roles.values()) == pytest.approx(row.seconds)
        assert list(row.roles.values()) == sorted(row.roles.values(), reverse=True)


def test_a_layer_says_what_runs_and_what_was_fused(explanation: Explanation):
    row = explanation.layers[1]
    assert row.operators["CPUExecutionProvider"]["BiasGelu"] == 1
    assert row.bodies["AddAdapter"] == 6
    assert row.fused == {"MultiHeadAttention": 1, "SkipLayerNormalization": 2, "BiasGelu": 1}


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_native_kernels_stand_as_they_are(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(native.SWITCH, "auto")
    explanation = explain(profile_bundle(compiled, tokens=20, runs=1, threads=1))
    assert explanation.profile.unattributed == 0
    for row in explanation.layers[:2]:
        assert row.bodies == {}
        counts = row.operators["CPUExecutionProvider"]
        own = ("Route", "TakeTokens", "PutDifference", "AddAdapter", "AddGelu", "SelfAttention")
        assert [counts[name] for name in own] == [1] * len(own)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([0], "layer 0"),
        ([0, 1, 2], "layers 0-2"),
        ([5, 0, 1, 3], "layers 0-1, 3, 5"),
        ([None], "outside the layers"),
        ([2, None], "layer 2 and outside the layers"),
    ],
)
def test_layer_ranges(layers: list[int | None], text: str):
    assert layer_ranges(layers) == text


def test_the_table_says_it_all(explanation: Explanation, capsys: pytest.CaptureFixture[str]):
    explain_table.show(explanation)
    out = capsys.readouterr().out
    assert "1 x 20 tokens, medians of 2 runs, 1 thread;" in out
    assert "\noutside " in out
    assert "layer 1: CPUExecutionProvider: MatMul 5" in out
    assert "layer 1: Route as " in out
    assert "TakeTokens as 1 kernel\n" in out
    assert "  layers 0-1: MultiHeadAttention 1, SkipLayerNormalization 2, BiasGelu 1\n" in out
    assert "could not be traced" not in out


def test_the_table_tells_what_could_not_be_traced(explanation: Explanation, capsys: pytest.CaptureFixture[str]):
    profile = explanation.profile
    lost = Kernel("[red]new", "New", "CPUExecutionProvider", None, profile.kernel_seconds)
    explain_table.show(explain(replace(profile, kernels=(*profile.kernels, lost), threads=0)))
    out = capsys.readouterr().out
    assert "50.0% of the kernels' time could not be traced back to a layer" in out
    assert "onnxruntime's own choice of threads" in out


def test_the_command(compiled: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    command = ["coda-compile", "explain", str(compiled.folder), "--tokens", "8", "--runs", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    out, err = capfd.readouterr()
    assert out.startswith("1 x 8 tokens, medians of 1 run,")
    assert err == ""


def test_the_command_refuses_what_is_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["coda-compile", "explain", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "is no bundle" in capfd.readouterr().err
