"""What stands in a terminal, however narrow it is."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from coda_compile import terminal
from coda_compile.cli.summaries import inspected
from coda_compile.terminal import Progress, whole
from coda_targets import Bundle
from coda_targets.manifest import LogitsInfo


def test_a_table_wider_than_the_terminal_keeps_every_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    table = Table(title="a title", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    headers = ["", "median", "P90", "P99", "spread", "tokens/s", *(f"r={r} int8 is faster" for r in range(1, 7))]
    cells = ["a contender", "108.1", "141.2", "142.8", "23%", "1,184", *(f"{r}.08x [1.01, 1.17]" for r in range(1, 7))]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_row(*cells)
    whole(table)
    _, first, second = capsys.readouterr().out.splitlines()
    assert all(header in first for header in headers)
    assert all(cell in second for cell in cells)


@pytest.mark.parametrize(
    ("activation", "kind", "labels", "said"),
    [
        ("softmax", "single_label_classification", 3, "softmax of the logits, the best label is the prediction"),
        ("sigmoid", "multi_label_classification", 3, "sigmoid of the logits, each label is decided on its own"),
        ("none", "regression", 2, "the logits themselves, each label is a number"),
        ("none", "regression", 1, "the logits themselves, one number per text"),
    ],
)
def test_inspect_says_what_logits_mean(
    activation: str, kind: str, labels: int, said: str, compiled: Bundle, capsys: pytest.CaptureFixture[str]
):
    bundle = Bundle(compiled.folder)
    meaning = LogitsInfo(activation, kind)
    bundle.manifest = replace(bundle.manifest, logits=meaning, labels=bundle.manifest.labels[:labels])
    inspected(bundle)
    assert f"\n  scores   {said}\n" in capsys.readouterr().out


@pytest.mark.parametrize("seen", [True, False])
def test_steps_of_a_stage_are_shown_where_somebody_sees_them(seen: bool, monkeypatch: pytest.MonkeyPatch):
    shown = StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=shown, force_terminal=seen, width=80))
    progress = Progress()
    progress.step("routers", 1, 9)  # no stage lasts
    with progress.stage("route"):
        progress.step("routers", 3, 25)
        if progress._shown is not None:
            progress._shown._live.refresh()
    assert ("routers, 3 of 25 …" in shown.getvalue()) == seen
    assert ("✓ route" in shown.getvalue().replace("\x1b[32m", "").replace("\x1b[0m", "")) == seen
    assert "1 of 9" not in shown.getvalue()


def test_time_left_is_what_the_rest_takes_at_this_rate(monkeypatch: pytest.MonkeyPatch):
    """From the first step that is told, which is not the first one where a run goes on; each thing counts anew."""
    shown = StringIO()
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(terminal, "err", Console(file=shown, force_terminal=True, width=80))
    progress, seen = Progress(), []
    with progress.stage("route"):
        assert progress._shown is not None
        monkeypatch.setattr(progress._shown, "update", seen.append)
        for what, done in (
            ("fit", 0),
            ("fit", 1),
            ("steps", 40),
            ("steps, loss 0.5", 41),
            ("steps", 45),
            ("steps", 20),
        ):
            progress.step(what, done, 50)
    assert seen == [
        "fit, 0 of 50 …",
        "fit, 1 of 50, 8 min left …",
        "steps, 40 of 50 …",
        "steps, loss 0.5, 41 of 50, 90 s left …",
        "steps, 45 of 50, 20 s left …",
        "steps, 20 of 50 …",
    ]
