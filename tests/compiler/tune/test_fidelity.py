"""What route measured goes where the model goes: into the checkpoint, the bundle, what commands say, and the report."""

import json
from pathlib import Path

import pytest
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, RouteOptions, compile, route
from coda_compile.cli import summaries
from coda_compile.errors import CompileWarning
from coda_compile.report.page import make_report
from coda_models import CodaConfig, load


def test_a_checkpoint_and_its_bundle_tell_what_was_measured(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts, path = tmp_path / "texts.jsonl", tmp_path / "routed.pt"
    rows = [{"text": text, "label": f"LABEL_{i % 3}"} for i, text in enumerate(random_texts(80))]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = RouteOptions(stand_in=8, key_value_rank=8, tokenizer=tokenizer, label_column="label")
    front = route(tiny_coda("bert", CodaConfig(reduction=1)), texts, options, reductions=[2], output=path)
    kept = load(path).fidelity
    assert kept is not None
    same, right = kept.figures
    assert (same.name, same.value, same.dense) == ("same label", front.routed[0].agreement["same label"].middle, None)
    assert (right.name, right.dense) == ("accuracy", front.accuracy["accuracy"].middle)
    assert (kept.texts, kept.tokens, kept.fitted_on) == (front.held_out, front.tokens, front.fitted_on)

    bundle = compile(path, output=tmp_path / "bundle")
    assert bundle.manifest.fidelity == kept
    summaries.inspected(bundle)
    assert f"keeps    {same}" in capsys.readouterr().out
    page = make_report(bundle, tmp_path / "report.html").read_text("utf-8")
    assert "same label as the dense model" in page
    assert f"{kept.texts} held-out texts" in page

    with pytest.warns(CompileWarning, match="fitted at r = 2"):
        other = compile(path, CompileOptions(reduction=4), output=tmp_path / "other")
    assert other.manifest.fidelity is None
