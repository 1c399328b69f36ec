"""What stands in a terminal, however narrow it is."""

from dataclasses import replace

import pytest
from rich.table import Table

from coda_compile.cli.summaries import inspected
from coda_compile.terminal import whole
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
