"""A real encoder trained on real queries of five intents: what the command tells holds for the compiled bundle."""

import csv
import json
import re
from pathlib import Path

import pytest
from tests.compiler.commands import whole

from coda_compile.text_files import read_table
from coda_compile.tune.labels import read_labels
from coda_compile.tune.texts import distinct, held_out_of

pytestmark = pytest.mark.slow
CLINC = Path(__file__).parents[3] / "shared" / "data" / "clinc150.json"
INTENTS = ("balance", "bill_balance", "transfer", "transactions", "pay_bill")  # of one domain


def test_queries_from_labels_to_a_bundle(encoder: Path, tmp_path: Path):
    if not CLINC.is_file():
        pytest.skip("CLINC150 lies outside of the project")
    data, queries = tmp_path / "queries.csv", json.loads(CLINC.read_text("utf-8"))["train"]
    with data.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for intent in INTENTS:
            writer.writerows([query for query in queries if query[1] == intent][:40])
    options = ["--backbone", str(encoder), "--epochs", "6", "-r", "2", "-o", "trained.pt"]
    told = whole("train", "queries.csv", *options, cwd=tmp_path).worked()
    linear, dense = (float(re.search(rf"{row}\s+(\S+)%", told)[1]) for row in ("words", "adapter"))  # type: ignore[index]
    routed = re.search(r"r=2\s+\S+% \S+ \S+\s+(\S+)%", told)
    assert dense >= 85
    assert linear >= 70
    assert routed is not None
    assert float(routed[1]) >= dense - 15
    whole("trained.pt", "-o", "bundle", cwd=tmp_path).worked()
    rows = distinct(read_table(data, "label"), data, "training")
    held_out = read_labels(rows, data, None).held_out(held_out_of(len(rows)), 0)
    with (tmp_path / "held-out.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((rows[i].text, rows[i].label) for i in held_out)])
    judged = whole("evaluate", "bundle", "--data", "held-out.csv", cwd=tmp_path).worked()
    assert f"{dense:.2f}%" in judged
