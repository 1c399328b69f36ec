"""The fixture as a project's own tests meet it."""

import subprocess
import sys
from typing import Any

import pytest
from tests.compiler.regression.results import launches, timed, timing, untimed

from coda_compile.errors import CodaError
from coda_compile.regression import check as gate

pytest_plugins = ["pytester"]

RESULTS = {
    "passed": timed(timing(launches(8))),
    "slower": timed(timing(launches(8, ratio=1.2))),
    "lost": untimed(),
    "untold": timed(timing(launches(8, shift=0.1))),
}
TEST = """
    def test_latency(coda_latency):
        coda_latency.assert_not_slower("new", than="old", by=0.07, tokens=9)
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(TEST)
    return pytester.runpytest("-rs", "-p", "no:coda", "-p", "coda_compile.pytest_plugin", *arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "outcome"),
    [
        ("passed", [], "passed"),
        ("slower", [], "failed"),
        ("lost", [], "failed"),
        ("untold", [], "skipped"),
        ("untold", ["--coda-latency-strict"], "failed"),
    ],
)
def test_verdicts_become_outcomes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str], outcome: str
):
    asked: dict[str, Any] = {}

    def check(bundle: str, than: str, **options: Any) -> gate.CheckResult:
        asked.update(options, sides=(bundle, than))
        return RESULTS[name]

    monkeypatch.setattr(gate, "check", check)
    result = run(pytester, *arguments)
    result.assert_outcomes(**{outcome: 1})
    assert asked == {
        "sides": ("new", "old"),
        "by": 0.07,
        "batch": 1,
        "tokens": 9,
        "threads": 0,
        "launches": 32,
        "budget": 300.0,
    }
    if outcome != "passed":
        result.stdout.fnmatch_lines([f"*{RESULTS[name].verdict.value}: {RESULTS[name].reason[:30]}*"])
    assert "Traceback" not in result.stdout.str()


def test_what_cannot_be_compared_fails_in_one_sentence(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    def check(*_: object, **__: object) -> None:
        raise CodaError("new is no bundle")

    monkeypatch.setattr(gate, "check", check)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["new is no bundle"])


def test_the_plugin_loads_nothing_that_measures():
    heavy = {"torch", "transformers", "psutil", "onnx", "coda_compile.regression.check"}
    code = f"import sys, coda_compile.pytest_plugin; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
