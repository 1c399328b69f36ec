"""A real encoder routed on real sentences, this project's own: what the command tells holds for the compiled bundle."""

import re
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.commands import whole
from tests.sentences import embedded

from coda_compile.sources import read_source
from coda_compile.text_files import Row
from coda_compile.tune.agreement import answers
from coda_compile.tune.texts import batches
from coda_targets import Bundle

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def sentences() -> list[str]:
    """Of the documentation, tables and code left out."""
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        for block in re.split(r"\n\s*\n", path.read_text("utf-8")):
            if not block.startswith(("|", "#", "    ")):
                found += re.split(r"(?<=[.!?]) ", " ".join(block.split()))
    return [one for one in dict.fromkeys(found) if len(one.split()) >= 5]


def test_an_encoder_from_sentences_to_a_bundle(encoder: Path, tmp_path: Path):
    every = sentences()
    (tmp_path / "texts.txt").write_text("\n".join(every) + "\n", "utf-8")
    options = ["--texts", "texts.txt", "-r", "2", "--fit-texts", "200", "-o", "routed.pt"]
    told = whole("route", str(encoder), *options, cwd=tmp_path).worked()
    row, advice = (line.split() for line in told.splitlines() if line.startswith("r=2"))
    assert advice[-5:] == ["that", "loses", "3", "at", "most"]
    cosine, share = float(row[1]), float(row[7].rstrip("%")) / 100
    assert cosine > 0.8
    assert 0.4 < share < 0.7
    whole("routed.pt", "-o", "bundle", cwd=tmp_path).worked()
    routed, bundle = read_source(tmp_path / "routed.pt"), Bundle(tmp_path / "bundle")
    assert [layer.stand_in for layer in bundle.manifest.layers] == [64] * 6
    assert routed.tokenizer is not None
    some = every[::20]
    made = batches([Row(text, "", "") for text in some], routed.tokenizer, routed.model.signature)
    ours, theirs = np.stack(answers(routed.model, made)), embedded(bundle, some)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
