"""`coda-compile run`: texts and pairs of them, from arguments, files and stdin."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.compiler.commands import Call, Ended, whole
from tests.targets.test_manifest import edit_variant

from coda_targets import Bundle


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.split("\n")[:-1]]


def test_run_on_arguments(call: Call, compiled: Bundle):
    good, bad = records(call("run", str(compiled.folder), "good film", "bad [plot] é\u2028x").worked())
    assert (good["text"], bad["text"]) == ("good film", "bad [plot] é\u2028x")
    assert set(good) == {"text", "label", "score"}


def test_run_on_a_file(call: Call, compiled: Bundle):
    Path("texts").write_text("good film\n\n  \nbad\r\nw1 w2", "utf-8")
    texts = [record["text"] for record in records(call("run", str(compiled.folder), "-f", "texts").worked())]
    assert texts == ["good film", "bad", "w1 w2"]


def test_run_on_stdin(compiled: Bundle, tmp_path: Path):
    done = whole("run", str(compiled.folder), "--batch", "2", cwd=tmp_path, input="good\nbad é\nfilm\n".encode())
    assert [record["text"] for record in records(done.worked())] == ["good", "bad é", "film"]
    dash = whole("run", str(compiled.folder), "-f", "-", cwd=tmp_path, input=b"good\n")
    assert records(dash.worked())[0] == pytest.approx(records(done.out)[0], abs=1e-5)


@pytest.mark.parametrize("text", [b"", b"\n \n"])
def test_run_on_empty_stdin(compiled: Bundle, tmp_path: Path, text: bytes):
    done = whole("run", str(compiled.folder), cwd=tmp_path, input=text)
    assert done.refused() == "stdin holds no text to run on: give a text a line"


def test_run_without_any_stdin(compiled: Bundle, tmp_path: Path):
    command = f"exec {sys.executable} -m coda_compile run {compiled.folder} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert "no text to run on" in Ended(done.returncode, done.stdout, done.stderr).refused()


@pytest.mark.parametrize("way", ["stdin", "file", "argument"])
def test_run_on_what_is_not_utf8(compiled: Bundle, tmp_path: Path, way: str):
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    arguments = {"stdin": [], "file": ["-f", "latin"], "argument": [os.fsdecode(b"caf\xe9")]}[way]
    done = whole("run", str(compiled.folder), *arguments, cwd=tmp_path, input=b"caf\xe9\n")
    source = "latin" if way == "file" else "the input"
    assert done.refused() == f"{source} is not UTF-8 text: convert it, for example with iconv"


def test_run_into_a_closed_pipe_or_a_full_device(compiled: Bundle, tmp_path: Path):
    command = [sys.executable, "-m", "coda_compile", "run", str(compiled.folder), "good"]
    read, write = os.pipe()
    os.close(read)
    try:
        closed = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (closed.returncode, closed.stderr) == (1, "")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert "no space left" in Ended(done.returncode, "", done.stderr).refused()


def test_show_routing(call: Call, compiled: Bundle):
    lines = call("run", str(compiled.folder), "--show-routing", "good [film] w1 w2").worked().splitlines()
    assert json.loads(lines[0])["text"] == "good [film] w1 w2"
    assert len(lines) == 3
    for layer, line in enumerate(lines[1:]):
        assert line.split()[:2] == ["layer", str(layer)]
        assert "words" in line


def test_run_on_a_bundle_without_a_tokenizer(call: Call, copied: Path):
    (copied / "tokenizer.json").unlink()
    assert "holds no tokenizer: feed token ids through Bundle.run" in call("run", str(copied), "good").refused()


def test_run_on_what_is_no_bundle(call: Call):
    assert "is no bundle: it has no coda.json" in call("run", "nowhere", "good").refused()


@pytest.mark.parametrize("routing", [[], ["--show-routing"]])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_run_on_a_damaged_model(call: Call, copied: Path, content: bytes | None, routing: list[str]):
    (copied / "model.onnx").unlink()
    if content is not None:
        (copied / "model.onnx").write_bytes(content)
    assert "model.onnx" in call("run", str(copied), *routing, "good").refused()


def test_run_on_a_target_that_runs_nothing(call: Call, copied: Path):
    edit_variant(copied, target="null")
    assert "target 'null' cannot run here" in call("run", str(copied), "good").refused()


PAIRS = [("good film", "bad plot"), ("good film", "w1 w2")]
FILES = {
    "pairs.csv": "text_pair,text\nbad plot,good film\nw1 w2,good film\n",
    "pairs.jsonl": "\n".join(json.dumps({"text": a, "text_pair": b}) for a, b in PAIRS) + "\n",
}


def test_pairs_come_from_arguments_and_files_alike(call: Call, compiled: Bundle):
    folder = str(compiled.folder)
    given = records(call("run", folder, "good film", "--text-pair", "bad plot", "--text-pair", "w1 w2").worked())
    assert [(one["text"], one["text_pair"]) for one in given] == PAIRS
    assert list(given[0]) == ["text", "text_pair", "label", "score"]
    (alone,) = records(call("run", folder, "good film").worked())
    assert alone["score"] != given[0]["score"]
    for name, content in FILES.items():
        Path(name).write_text(content, "utf-8")
        assert records(call("run", folder, "--file", name).worked()) == given


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [
        (["a", "b", "--text-pair", "c"], [("a", "c"), ("b", "c")]),
        (["a", "b", "--text-pair", "c", "--text-pair", "d"], [("a", "c"), ("b", "d")]),
        (["a", "--text-pair", ""], [("a", "")]),
    ],
)
def test_how_texts_are_paired(call: Call, compiled: Bundle, arguments: list[str], pairs: list[tuple[str, str]]):
    found = records(call("run", str(compiled.folder), *arguments).worked())
    assert [(one["text"], one["text_pair"]) for one in found] == pairs


def test_lines_of_other_files_are_texts(call: Call, compiled: Bundle):
    Path("pairs.txt").write_text(FILES["pairs.csv"], "utf-8")
    found = records(call("run", str(compiled.folder), "--file", "pairs.txt").worked())
    assert [one["text"] for one in found] == FILES["pairs.csv"].splitlines()
    assert all("text_pair" not in one for one in found)


def test_a_json_line_may_hold_one_text(call: Call, compiled: Bundle):
    Path("mixed.jsonl").write_text('{"text": "good", "id": 7}\n\n{"text": "good", "text_pair": null}\n', "utf-8")
    first, second = records(call("run", str(compiled.folder), "--file", "mixed.jsonl").worked())
    assert first["text"] == second["text"] == "good"
    assert "text_pair" not in {**first, **second}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence\ngood\n", "a.csv has no column 'text'"),
        ("a.csv", "text,text_pair\ngood, really,bad\n", "line 2 of a.csv has more cells than the header: quote texts"),
        ("a.jsonl", "good\n", "text 1 of a.jsonl is not JSON"),
        ("a.jsonl", '{"text": "good"}\n{"text": 1}\n', "text 2 of a.jsonl holds no text"),
        ("a.jsonl", '{"text": "a", "text_pair": ["b"]}\n', "text 1 of a.jsonl holds no text"),
        ("a.jsonl", '["a"]\n', "text 1 of a.jsonl holds no text"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "the input is not UTF-8 text"),
    ],
)
def test_files_that_hold_no_texts(call: Call, compiled: Bundle, name: str, content: str, message: str):
    Path(name).write_text(content, "utf-8")
    ended = call("run", str(compiled.folder), "--batch", "8", "--file", name)
    assert message in ended.refused()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["a", "b", "--text-pair", "c", "--text-pair", "d", "--text-pair", "e"],
            1,
            "2 texts and 3 of --text-pair make no",
        ),
        (["--text-pair", "c"], 2, "--text-pair stands beside TEXTS"),
        (["a", "--file", "x"], 2, "give TEXTS or --file, one of them"),
        (["--file", "nowhere"], 2, "'nowhere' does not exist"),
    ],
)
def test_wrong_use_of_run(call: Call, compiled: Bundle, arguments: list[str], status: int, message: str):
    Path("x").write_text("good")
    assert message in call("run", str(compiled.folder), *arguments).refused(status)


def test_raw_logits(call: Call, compiled: Bundle):
    (record,) = records(call("run", str(compiled.folder), "--raw", "good film").worked())
    assert list(record) == ["text", "logits"]
    assert [one["label"] for one in record["logits"]] == list(compiled.manifest.labels)


def test_routing_shows_both_texts_of_a_pair(call: Call, compiled: Bundle):
    arguments = ["run", str(compiled.folder), "--show-routing", "good film", "--text-pair", "good w1"]
    _, first, second = call(*arguments).worked().splitlines()
    for line in (first, second):
        assert line.split("words")[1].replace("[", "").replace("]", "").split() == ["good", "film", "good", "w1"]
