"""The gate as a whole: in which order it asks, and what it refuses."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.compiler.regression.results import MACHINE, launches, rewrite, timing

from coda_compile.cli.measure import check as check_command
from coda_compile.errors import CodaError
from coda_compile.regression import check as module
from coda_compile.regression.ab import BUDGET_SECONDS, MOST_LAUNCHES, Timing
from coda_compile.regression.check import BY, advise, check, explain_timing, percent
from coda_compile.regression.verdict import Verdict
from coda_targets import Bundle, BundleError
from coda_targets.manifest import TensorInfo
from coda_targets.signature import Signature


def _no_clock(*_: object, **__: object) -> Timing:
    raise AssertionError("timed")


@pytest.fixture
def slower(copied: Path) -> Path:
    """A bundle whose manifest admits more work than it had."""
    manifest = Bundle(copied).manifest
    return rewrite(copied, layers=tuple(replace(layer, reduction="1") for layer in manifest.layers))


def test_a_deterministic_regression_decides_without_a_clock(
    compiled: Bundle, slower: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "compare_latency", _no_clock)
    result = check(slower, compiled)
    assert (result.verdict, result.timing) == (Verdict.REGRESSION, None)
    assert result.reason.startswith("multiply-adds: ")
    assert (result.bundle, result.baseline) == (str(slower), str(compiled.folder))


def test_less_work_is_timed(compiled: Bundle, slower: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def clock(
        baseline: Bundle, candidate: Bundle, signature: Signature, shape: tuple[int, int], **options: Any
    ) -> Timing:
        asked.update(options, folders=(baseline.folder, candidate.folder), shape=shape)
        return timing(launches(8))

    monkeypatch.setattr(module, "compare_latency", clock)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    result = check(str(compiled.folder), slower, batch=2, tokens=16, launches=5, budget=7, threads=1, by=0.1)
    assert result.verdict is Verdict.NO_REGRESSION
    assert [item.regression for item in result.differences] == [False]
    assert asked.pop("on_launch")
    assert asked == {
        "by": 0.1,
        "threads": 1,
        "most": 5,
        "budget": 7,
        "folders": (slower, compiled.folder),
        "shape": (2, 16),
    }


def test_one_core_keeps_what_needs_no_clock(compiled: Bundle, slower: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "compare_latency", _no_clock)
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    result = check(compiled, compiled)
    assert result.verdict is Verdict.CANNOT_TELL
    assert result.reason.startswith("this machine has one core")
    assert result.advice == ("use a machine with two cores or more",)
    assert result.facts.nodes > 0
    assert check(slower, compiled).verdict is Verdict.REGRESSION


@pytest.mark.parametrize("damaged_side", [0, 1])
def test_a_bundle_damaged_after_writing_is_refused(compiled: Bundle, copied: Path, damaged_side: int):
    data = bytearray((copied / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.onnx").write_bytes(data)
    sides = [compiled.folder, compiled.folder]
    sides[damaged_side] = copied
    with pytest.raises(BundleError, match=r"model.onnx is damaged: its SHA-256 is not the manifest's"):
        check(*sides)


def test_bundles_of_different_tasks_are_refused_before_anything_is_hashed(compiled: Bundle, copied: Path):
    outputs = (TensorInfo("logits", "float32", ("batch", "sequence", 2)),)
    other = rewrite(copied, task="token-classification", outputs=outputs)
    (other / "model.onnx").write_bytes(b"")
    with pytest.raises(CodaError, match="different tasks"):
        check(other, compiled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": 0.0}, "the threshold is 0, which is no fraction between 0 and 1: give 0.05 for 5 %"),
        ({"by": 5.0}, "the threshold is 5, which is no fraction"),
        ({"by": float("nan")}, "the threshold is nan"),
        ({"batch": 0}, "a batch of 0 cannot be timed"),
        ({"tokens": 0}, "0 tokens do not fit these bundles"),
        ({"tokens": 1000}, "1000 tokens do not fit these bundles: they take 1 to "),
        ({"launches": 3}, "3 launches are too few to tell anything: allow at least 4"),
        ({"budget": float("nan")}, "a budget of nan seconds is none"),
        ({"budget": -1.0}, "a budget of -1 seconds is none"),
        ({"threads": 10_000}, "measure the scheduler"),
    ],
)
def test_options_out_of_range_are_refused(compiled: Bundle, options: dict[str, Any], message: str):
    with pytest.raises(CodaError, match=message):
        check(compiled, compiled, **options)


# What it says.


def test_reasons_are_sentences_with_their_figures():
    regression = timing(launches(8, ratio=1.2))
    assert explain_timing(regression).startswith("latency +")
    assert explain_timing(regression).endswith(" %), over the threshold of 5 %")
    assert explain_timing(timing(launches(8))).endswith(" %), under the threshold of 5 %")
    assert explain_timing(timing(launches(8, ratio=1.05))).endswith("the threshold of 5 % lies inside the interval")
    noisy = timing(launches(8, shift=0.1))
    assert explain_timing(noisy).startswith("the threshold of 5 % lies below the noise of this machine, ")
    loud = timing(launches(8, ratio=9, shift=0.1))
    assert f"over the threshold of 5 % and over the noise of {percent(loud.estimate.floor)}" in explain_timing(loud)
    short = timing(launches(2), budget=10.0)
    assert explain_timing(short) == "2 launches fitted into 10 s and 4 are the fewest that tell anything"


def test_advice_is_given_where_the_gate_cannot_tell():
    assert advise(timing(launches(8)), MACHINE, 512) == ()
    slow_clock = replace(MACHINE, governor="powersave")
    noisy = timing(launches(8, shift=0.1), load=3.5)
    advice = "\n".join(advise(noisy, slow_clock, 512))
    for words in ("load average was 3.5 on 4 cores", "'powersave'", "--budget 600", "--tokens 512", "--by 0."):
        assert words in advice
    assert float(advice.split("--by ")[1].splitlines()[0]) >= noisy.estimate.floor
    spent = timing(launches(32, ratio=1.05), tokens=512)
    hopeless = advise(timing(launches(8, shift=2.0)), MACHINE, 512)
    assert not [line for line in hopeless if "--by" in line]  # no threshold of 1 or more is taken
    assert advise(spent, MACHINE, 512) == (
        "allow more launches: --launches 64 --budget 600",
        "use a machine that does nothing else",
    )


# The command.


def test_the_options_defaults_are_those_of_the_gate():
    defaults = {option.name: option.default for option in check_command.params}
    assert {name: defaults[name] for name in ("by", "launches", "budget")} == {
        "by": BY,
        "launches": MOST_LAUNCHES,
        "budget": BUDGET_SECONDS,
    }


def _command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coda_compile", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_the_command_ends_with_the_exit_code_of_its_verdict(compiled: Bundle, slower: Path, tmp_path: Path):
    reports = ("--json", "check.json", "--junit", "check.xml")
    done = _command(slower, "--against", compiled.folder, *reports, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    assert "regression: multiply-adds: " in done.stdout
    assert (tmp_path / "check.json").is_file()
    assert (tmp_path / "check.xml").is_file()


def test_the_command_cannot_tell_from_a_few_launches(compiled: Bundle, tmp_path: Path):
    """How many fit into a second is the machine's affair; a hundredth is not told from nothing by any of these numbers."""
    options = ("--budget", "1", "--threads", "1", "--tokens", "8", "--by", "0.01")
    done = _command(compiled.folder, "--against", compiled.folder, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (4, "")
    assert "cannot tell: " in done.stdout or "one core" in done.stdout
    assert "would help: " in done.stdout


@pytest.mark.parametrize(
    ("against", "options", "message"),
    [
        (
            "nothing",
            (),
            "there is no bundle nothing: give a bundle's folder, or a git ref with --build-baseline COMMAND",
        ),
        (".", (), ". is no bundle: it has no coda.json"),
        ("main", ("--build-baseline", "true"), " is in no git repository"),
        (".", ("--json", "gone/check.json"), "gone does not exist: make it, or write check.json elsewhere"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    compiled: Bundle, tmp_path: Path, against: str, options: tuple[str, ...], message: str
):
    done = _command(compiled.folder, "--against", against, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert message in line
