"""What people, programs, test reports and GitHub read."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.compiler.regression.results import FACTS, launches, timed, timing, untimed

from coda_compile.regression import outputs
from coda_compile.regression.check import CheckResult
from coda_compile.regression.outputs import annotations, show, tell_github, to_json, to_junit, to_markdown, watching
from coda_compile.regression.verdict import Verdict

PASSED = timed(timing(launches(8)))
SLOWER = timed(timing(launches(8, ratio=1.2)))
UNTOLD = timed(timing(launches(8, shift=0.1)))
SHORT = timed(timing(launches(1)))
ALL = {"passed": PASSED, "slower": SLOWER, "untold": UNTOLD, "short": SHORT, "lost": untimed()}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outputs, "_out", Console(width=200, highlight=False, markup=False, emoji=False))


def test_the_results_are_what_their_names_say():
    assert [result.verdict for result in ALL.values()] == [
        Verdict.NO_REGRESSION,
        Verdict.REGRESSION,
        Verdict.CANNOT_TELL,
        Verdict.CANNOT_TELL,
        Verdict.REGRESSION,
    ]


@pytest.mark.parametrize("name", ALL)
def test_people_read_the_verdict_and_its_reason(name: str, capsys: pytest.CaptureFixture[str]):
    result = ALL[name]
    show(result)
    printed = capsys.readouterr().out
    assert f"{result.verdict.value}: {result.reason}\n" in printed
    assert all(f"would help: {advice}\n" in printed for advice in result.advice)
    assert all(item.what in printed for item in result.differences)


def test_nothing_deterministic_is_said_in_one_line(capsys: pytest.CaptureFixture[str]):
    show(replace(PASSED, differences=()))
    assert "nothing deterministic differs: 10 nodes after fusions, 1.0 M multiply-adds" in capsys.readouterr().out


def test_names_are_never_markup(capsys: pytest.CaptureFixture[str]):
    show(replace(PASSED, bundle="[red]new[/]", baseline=":smile:"))
    assert "[red]new[/] against :smile:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ALL)
def test_json_has_the_verdict_and_the_machine(name: str):
    plain = json.loads(to_json(ALL[name]), parse_constant=pytest.fail)
    assert plain["schema_version"] == 1
    assert plain["verdict"] == ALL[name].verdict.value
    assert plain["exit_code"] == ALL[name].verdict.exit_code
    assert plain["machine"]["cpu"] == "A CPU"
    assert plain["facts"]["operators"] == FACTS.operators
    if ALL[name].timing is not None:
        assert plain["timing"]["estimate"]["verdict"] == plain["verdict"]
        assert len(plain["timing"]["launches"]) == len(ALL[name].timing.launches)


@pytest.mark.parametrize(
    ("name", "failures", "skipped", "failed"),
    [
        ("passed", "0", "0", None),
        ("slower", "1", "0", "latency"),
        ("untold", "0", "1", None),
        ("short", "0", "1", None),
        ("lost", "1", "1", "facts"),
    ],
)
def test_junit_counts_a_regression_as_a_failure_and_no_answer_as_skipped(
    name: str, failures: str, skipped: str, failed: str | None
):
    root = ET.fromstring(to_junit(ALL[name]))
    (suite,) = root
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", failures, skipped)
    assert list(cases) == ["facts", "latency"]
    assert [name for name, case in cases.items() if case.find("failure") is not None] == ([failed] if failed else [])
    assert len(root.findall(".//skipped")) == int(skipped)


def test_junit_survives_any_name():
    name = 'a<b>&"c"\x00\x1b[31m\ud800é'
    root = ET.fromstring(to_junit(replace(PASSED, bundle=name)).encode("utf-8"))
    (value,) = (item.get("value") for item in root.iter("property") if item.get("name") == "bundle")
    assert value == 'a<b>&"c"��[31m�é'


@pytest.mark.parametrize(
    ("name", "level"), [("passed", "notice"), ("slower", "error"), ("untold", "warning"), ("lost", "error")]
)
def test_github_gets_one_annotation(name: str, level: str):
    (line,) = annotations(ALL[name])
    assert line.startswith(f"::{level} title=coda-compile check::{ALL[name].verdict.value}: ")


def test_annotations_are_escaped_as_github_wants():
    (line,) = annotations(replace(PASSED, reason="5 % of\r\na::b"))
    assert line.endswith("::no regression: 5 %25 of%0D%0Aa::b")
    assert outputs._property("a:b,c%") == "a%3Ab%2Cc%25"


def test_the_summary_is_markdown_that_no_name_can_break():
    odd: CheckResult = replace(untimed(), bundle="a|b\n<script>", baseline="_x_ `y`")
    text = to_markdown(odd)
    assert "a\\|b &lt;script&gt; against \\_x\\_ \\`y\\`" in text
    assert "| fused com.microsoft::BiasGelu | 2 | 1 | regression |" in text
    assert "- would help: " in to_markdown(UNTOLD)


def test_github_is_told_in_its_jobs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = tmp_path / "summary.md"
    tell_github(SLOWER, {})
    assert (capsys.readouterr().out, summary.exists()) == ("", False)
    tell_github(SLOWER, {"GITHUB_ACTIONS": "true"})
    assert capsys.readouterr().out == annotations(SLOWER)[0] + "\n"
    summary.write_text("before\n")
    tell_github(SLOWER, {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)})
    assert summary.read_text("utf-8") == "before\n" + to_markdown(SLOWER)


def test_progress_is_shown_only_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert PASSED.timing is not None
    with watching() as on_launch:
        on_launch(8, PASSED.timing.estimate)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(outputs, "_err", Console(stderr=True, force_terminal=True, width=200))
    with watching() as on_launch:
        on_launch(8, PASSED.timing.estimate)
