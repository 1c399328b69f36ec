"""The command line as people meet it: exit codes, one sentence on stderr, nothing left behind."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.compiler.commands import Call, Ended
from tests.targets.test_manifest import edit

from coda_compile import __version__
from coda_compile.cli.main import cli, main
from coda_targets import Bundle
from coda_targets.manifest import MANIFEST


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_mentions_the_commands(arguments: list[str]):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    for command in ("compile", "route", "run", "inspect", "verify", "evaluate", "bench", "check", "explain", "report"):
        assert f"\n  {command} " in result.output


def test_main_without_arguments_shows_help(call: Call):
    assert call().worked().startswith("Usage: ")


@pytest.mark.parametrize(
    "command", ["compile", "route", "run", "inspect", "verify", "evaluate", "bench", "check", "explain", "report"]
)
def test_every_command_has_help(command: str):
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {command} [OPTIONS] ")


def test_version():
    assert CliRunner().invoke(cli, ["--version"]).output == f"coda-compile, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["model.pt", "--target", "gpu", "-o", "DIR"],
        ["--target", "gpu", "model.pt", "-o", "DIR"],
        ["-t", "gpu", "-o", "DIR", "model.pt"],
        ["compile", "model.pt", "-t", "gpu"],
    ],
)
def test_compile_is_the_default_command(call: Call, arguments: list[str]):
    assert (
        call(*arguments).refused() == "target 'gpu' is unknown: use one of cpu, cuda, openvino, tensorrt, tensorrt-rtx"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile"], "Missing argument 'MODEL…'. (see `"),
        (["run"], "Missing argument 'BUNDLE'. (see `"),
        (["inspect"], "Missing argument 'BUNDLE'. (see `"),
        (["verify"], "Missing argument 'BUNDLE'. (see `"),
        (["verify", "DIR", "extra"], "Got unexpected extra argument (extra) (see `"),
        (["model.pt", "--colour"], "No such option"),
        (["model.pt", "-o"], "Option '-o' requires an argument."),
        (["run", "b", "--batch", "0", "x"], "Invalid value for '--batch': 0 is not in the range x>=1."),
        (["run", "b", "--threads", "-1", "x"], "Invalid value for '--threads': -1 is not in the range x>=0."),
        (
            ["run", "b", "--file", "nowhere.txt"],
            "Invalid value for '--file' / '-f': File 'nowhere.txt' does not exist.",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(call: Call, arguments: list[str], message: str):
    assert call(*arguments).refused(2).startswith(message)


def test_evaluate_shows_both_sides(call: Call, checkpoint: Path, compiled: Bundle):
    Path("texts.csv").write_text("text,label\ngood film,LABEL_0\nbad plot,LABEL_1\n")
    assert "accuracy" in call("evaluate", str(compiled.folder), "--data", "texts.csv").worked()
    out = call("evaluate", str(compiled.folder), "--data", "texts.csv", "--model", str(checkpoint)).worked()
    assert "eager original" in out
    assert "AUROC" not in out


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--data", "no.csv"], 1, "no.csv does not exist: give a CSV file with the columns text and label"),
        (["--data", "texts.csv", "--outside", "texts.csv"], 1, "scores no texts: compile it with --ood"),
        (
            ["--data", "texts.csv", "--outside", "texts.csv", "--model", "x.pt"],
            2,
            "needs the data that the bundle was fitted on",
        ),
        (["--data", "strange.csv"], 1, "line 2 of strange.csv has the label 'LABEL_9': this model knows LABEL_0"),
    ],
)
def test_wrong_use_of_evaluate(call: Call, compiled: Bundle, options: list[str], status: int, message: str):
    Path("texts.csv").write_text("text,label\ngood film,LABEL_0\n")
    Path("strange.csv").write_text("text,label\ngood film,LABEL_9\n")
    assert message in call("evaluate", str(compiled.folder), *options).refused(status)


def test_nohup_is_heard(monkeypatch: pytest.MonkeyPatch):
    """A program started by it has SIGHUP ignored, and goes on when its terminal is closed."""
    for ignored in (True, False):
        heard = []
        monkeypatch.setattr(signal, "getsignal", lambda _, ignored=ignored: signal.SIG_IGN if ignored else None)
        monkeypatch.setattr(signal, "signal", lambda number, _, heard=heard: heard.append(number))
        monkeypatch.setattr(sys, "argv", ["coda-compile", "--version"])
        main()
        assert heard == ([] if ignored else [signal.SIGTERM, signal.SIGHUP])


def test_verify(call: Call, compiled: Bundle):
    assert call("verify", str(compiled.folder)).worked().startswith("cpu: intact and right: scores within ")


def test_verify_a_damaged_bundle(call: Call, copied: Path):
    for name in ("model.onnx", "expected.json", "tokenizer.json", "test_data_set_0/output_0.pb"):
        kept = (copied / name).read_bytes()
        (copied / name).write_bytes(kept[:-1])
        assert f"{name} is damaged" in call("verify", str(copied)).refused()
        (copied / name).unlink()
        assert f"{name} is missing" in call("verify", str(copied)).refused()
        (copied / name).write_bytes(kept)
    (copied / MANIFEST).write_bytes(b"{")
    assert "coda.json is no manifest of a bundle: it is not JSON" in call("verify", str(copied)).refused()


def test_inspect_says_what_stands_in_for_layers(call: Call, copied: Path):
    layers = [{**asdict(layer), "stand_in": 16, "key_value_rank": 8} for layer in Bundle(copied).manifest.layers]
    edit(copied, layers=layers)
    out = call("inspect", str(copied)).worked()
    assert "tokens not routed: stand-ins of rank 16, keys and values of rank 8" in out


def test_inspect(call: Call, compiled: Bundle):
    out = call("inspect", str(compiled.folder)).worked()
    for text in (
        str(compiled.folder),
        "bert, sequence-classification",
        "input_ids int64[batch, sequence]",
        "logits float32[batch, 3]",
        "up to 66 tokens",
        "LABEL_0, LABEL_1, LABEL_2",
        "k_to_k",
        "ai.coda::Route 2",
        "model.onnx",
    ):
        assert text in out


def test_labels_and_folders_are_no_markup(call: Call, copied: Path, tmp_path: Path):
    plain = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps({**plain, "labels": ["[red]", "[/x]", ":bug:"]}))
    moved = copied.rename(tmp_path / "a[bold]c")
    out = call("inspect", str(moved)).worked()
    assert "[red], [/x], :bug:" in out
    assert "a[bold]c" in out


@pytest.mark.parametrize("damage", [b"", b"[]", b"{"])
def test_inspect_a_damaged_bundle(call: Call, copied: Path, damage: bytes):
    (copied / MANIFEST).write_bytes(damage)
    assert MANIFEST in call("inspect", str(copied)).refused()


@pytest.mark.parametrize(
    "arguments", [["run", "good film"], ["run", "--show-routing", "good film"], ["verify"], ["inspect"]]
)
def test_using_a_bundle_needs_no_torch(compiled: Bundle, arguments: list[str], tmp_path: Path):
    command, *rest = arguments
    code = (
        "import sys; from coda_compile.cli.main import cli;"
        f"cli.main({[command, str(compiled.folder), *rest]!r}, standalone_mode=False);"
        "heavy = {'torch', 'transformers', 'onnx_ir', 'onnxscript', 'safetensors'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert Ended(done.returncode, done.stdout, done.stderr).worked()


def test_end_of_file_is_no_interrupt(call: Call, compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    """click takes both for the user's wish to stop; an EOFError from a library is a defect that must show."""

    def broken(*_: Any) -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr("coda_compile.cli.summaries.inspected", broken)
    with pytest.raises(EOFError, match="Ran out of input"):
        call("inspect", str(compiled.folder))
