"""coda-compile MODEL: what is made, what is refused, and what is left when it is stopped."""

import errno
import json
import signal
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from tests import exporting
from tests.compiler.commands import Call, Ended, interrupted, whole
from tests.conftest import tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_models import CodaConfig, save
from coda_targets import Bundle


@pytest.fixture(scope="module")
def shipped(checkpoint: Path) -> Ended:
    """The command of the README, run once."""
    return whole("model.pt", "--target", "cpu", "-o", "shipped", cwd=checkpoint.parent)


def test_compile(shipped: Ended, checkpoint: Path):
    first, *_, last = shipped.worked().splitlines()
    assert first.startswith("shipped: 0.2 MB for cpu, verified, in ")
    assert last == '  next: coda-compile run shipped "some text"'
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["model.pt", "shipped"]
    Bundle(checkpoint.parent / "shipped").check()


def test_output_is_named_after_model_and_target(call: Call, checkpoint: Path):
    out = call(str(checkpoint), "-r", "1", "-t", "null").worked()
    assert out.startswith("model-null: ")
    assert "fewer multiply-adds" not in out
    assert Bundle("model-null").manifest.coda_config["reduction"] == "1"


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="there may be a GPU")
def test_compile_closes_with_what_is_left_to_do_on_the_device(call: Call, checkpoint: Path):
    lines = call(str(checkpoint), "-t", "cuda", "-o", "made").worked().splitlines()
    assert "  cuda: parity on CPUExecutionProvider, never run on a GPU; next, on one: coda-compile verify made" in lines
    assert lines[-1] == "  next: coda-compile inspect made"


def test_classes_and_warnings(call: Call, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """The user names the classes; a token beyond the model's table is told, and compiled all the same."""
    tiny_backbone("bert").save_pretrained(tmp_path / "model")
    more = deepcopy(tokenizer)
    more.add_tokens(["<user>"])
    more.save_pretrained(tmp_path / "model")
    named = ["--problem-type", "multi_label_classification", "--labels", "toxic, spam,rude"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of tests
        result = call(str(tmp_path / "model"), "-o", "named", *named)
    assert result.status == 0
    assert (
        "coda-compile: the tokenizer has 1 more tokens than the 100 that the model knows, '<user>' among" in result.err
    )
    assert "CompileWarning" not in result.err
    assert Bundle("named").manifest.labels == ("toxic", "spam", "rude")
    config = json.loads((Path("named") / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_classes_are_one_models(call: Call, checkpoint: Path):
    for options, status in (
        (["--add-to", "x", "--labels", "a,b"], 2),
        (["other.pt", "--problem-type", "regression"], 1),
    ):
        sentence = "--problem-type and --labels are one model's: set them in each model"
        assert sentence in call(str(checkpoint), *options).refused(status)


def test_one_reduction_a_layer_and_another_tokenizer(
    call: Call, checkpoint: Path, compiled: Bundle, tokenizer: PreTrainedTokenizerFast
):
    out = call(str(checkpoint), "-r", "1,4", "--tokenizer", str(compiled.folder), "-o", "two").worked()
    assert "x fewer multiply-adds than the dense model at 66 tokens" in out
    assert [layer.reduction for layer in Bundle("two").manifest.layers] == ["1", "4"]
    assert (Path("two") / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "nowhere.pt does not exist: give a model.pt, a checkpoint folder or a Hugging Face folder"),
        (["MODEL", "-p", "fp16"], "target 'cpu' has no precision 'fp16': use one of fp32, int8, int8-static, int4"),
        (["MODEL", "-t", "cuda", "-p", "int8"], "target 'cuda' has no precision 'int8': use one of fp32, fp16"),
        (["MODEL", "--profile", "1x8,2x8,4x8"], "target 'cpu' takes inputs of any size: leave --profile out"),
        (
            ["MODEL", "-t", "tensorrt", "--profile", "1x64"],
            "profile '1x64' cannot be read: give the least, the usual and",
        ),
        (
            ["MODEL", "-t", "tensorrt", "--profile", "1x8,4x8,2x8"],
            "profile '1x8,4x8,2x8' does not rise from 1x1 or more",
        ),
        (["MODEL", "-t", "tensorrt", "--profile", "1x8,4x8,4x9999"], "goes beyond the 66 tokens that this model takes"),
        (["MODEL", "-o", "no/such/folder"], "does not exist: make it, or choose another folder"),
        (["MODEL", "-o", "MODEL"], "exists and is no bundle: remove it or choose another folder"),
        (["MODEL", "-o", "/dev/null"], "/dev/null exists and is no bundle"),
        (["MODEL", "-o", "x" * 300], "File name too long"),
        (["MODEL", "-r", "0"], "reduction 0 is below 1"),
        (["MODEL", "-r", "many"], "reduction 'many' is no ratio"),
        (["MODEL", "-r", ""], "reduction '' is no ratio"),
        (["MODEL", "-r", "2,2,2"], "reduction lists 3 layers but the model has 2"),
        (["MODEL", "-r", "2,"], "reduction '' is no ratio"),
        (["MODEL", "--tokenizer", "."], "holds no tokenizer"),
        (["MODEL", "-p", "auto", "--data", "no.csv"], "no.csv does not exist: give a CSV file with the columns"),
        (["MODEL", "--ood", "energy"], "--ood and --ood-data go together"),
        (["MODEL", "--ood", "luck", "--ood-data", "x.csv"], "score 'luck' is unknown: use one of msp, energy"),
        (["MODEL", "--ood", "energy", "--ood-data", "x.csv"], "x.csv does not exist: give a CSV file with the columns"),
        (["BUNDLE"], "is a compiled bundle already: give the model that it was made from"),
        (["."], ". is a folder without config.json: give a checkpoint or Hugging Face folder"),
    ],
)
def test_refusals_leave_nothing_behind(
    call: Call, checkpoint: Path, compiled: Bundle, arguments: list[str], message: str
):
    names = {"MODEL": str(checkpoint), "BUNDLE": str(compiled.folder)}
    assert message in call(*(names.get(argument, argument) for argument in arguments)).refused()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "auto"], "measures on your data: give a CSV file with --data FILE"),
        (["--data", "x.csv"], "--data and --accuracy-budget are for --precision auto"),
        (["-p", "int8", "--accuracy-budget", "1"], "--data and --accuracy-budget are for --precision auto"),
        (["-p", "auto", "--data", "x.csv", "--accuracy-budget", "-1"], "-1.0 is not in the range"),
    ],
)
def test_wrong_use_of_auto(call: Call, checkpoint: Path, options: list[str], message: str):
    assert message in call(str(checkpoint), *options).refused(status=2)
    assert list(Path.cwd().iterdir()) == []


def test_auto_shows_what_it_chose_from(call: Call, checkpoint: Path, compiled: Bundle):
    Path("texts.csv").write_text("text,label\ngood film,LABEL_0\nbad plot,LABEL_1\n")
    options = ["-p", "auto", "--data", "texts.csv", "--accuracy-budget", "100", "-r", "2"]
    out = call(str(checkpoint), *options, "--tokenizer", str(compiled.folder), "-o", "chosen").worked()
    assert "r=2 int8" in out
    assert "the fastest that loses at most 100 points; one text is 50" in out
    assert Bundle("chosen").variant.precision in ("fp32", "int8")


def test_calibrated_activations(call: Call, checkpoint: Path, compiled: Bundle):
    assert "needs calibration data: give --calibrate" in call(str(checkpoint), "-p", "int8-static").refused()
    assert "is not calibrated: leave --calibrate out" in call(str(checkpoint), "--calibrate", "texts.csv").refused()
    assert list(Path.cwd().iterdir()) == []
    Path("texts.csv").write_text("text\ngood film\nbad plot w1 w2\n")
    options = ["-p", "int8-static", "--calibrate", "texts.csv", "--tokenizer", str(compiled.folder)]
    assert "verified" in call(str(checkpoint), *options, "-o", "static").worked()
    assert Bundle("static").variant.precision == "int8-static"
    assert "intact and right" in call("verify", "static").worked()


def test_several_tasks_from_the_first_to_one_added_later(call: Call, tokenizer: PreTrainedTokenizerFast):
    for name in ("topics", "moods", "later"):
        save(tiny_coda("bert", CodaConfig(reduction=2)), f"{name}.pt", tokenizer=tokenizer)
    assert call("topics.pt", "moods.pt", "-o", "both").worked().startswith("both: ")
    assert "tasks    topics, moods" in call("inspect", "both").worked()
    assert call("later.pt", "--add-to", "both").worked().startswith("both: ")
    assert [line.split(":")[0] for line in call("verify", "both").worked().splitlines()] == ["topics", "moods", "later"]
    assert '"label": ' in call("run", "both", "good film", "--task", "later").worked()
    assert "task 'x' is unknown: use one of topics, moods" in call("run", "both", "good", "--task", "x").refused()
    Path("elsewhere").mkdir()
    Path("moods.pt").rename("elsewhere/topics.pt")
    twice = call("topics.pt", "elsewhere/topics.pt", "-o", "b").refused(status=2)
    assert "two tasks would be named 'topics': rename one of the checkpoints" in twice
    several = call("topics.pt", "later.pt", "-p", "auto", "--data", "x.csv").refused(status=2)
    assert "--precision auto chooses for one model: compile each by itself" in several


def test_file_that_is_no_checkpoint(call: Call):
    Path("notes.pt").write_text("hello")
    assert "notes.pt is no checkpoint or is cut off" in call("notes.pt").refused()
    assert [path.name for path in Path.cwd().iterdir()] == ["notes.pt"]


def test_unsupported_architecture_names_the_supported(call: Call):
    Path("gpt").mkdir()
    Path("gpt/config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2Model"]}))
    message = (
        "model type 'gpt2' is not supported: use one of bert, roberta, xlm-roberta, distilbert, electra, modernbert, "
    )
    assert call("gpt").refused().startswith(message)
    assert [path.name for path in Path.cwd().iterdir()] == ["gpt"]


def test_delta_without_and_with_its_backbone(call: Call):
    save(tiny_coda("bert", CodaConfig(reduction=2)), "delta.pt", delta=True)
    assert "delta.pt is a delta that names no backbone: pass one as --backbone" in call("delta.pt").refused()
    assert "pass its folder as --backbone" in call("delta.pt", "--backbone", "./nowhere").refused()
    tiny_backbone("bert", seed=3).save_pretrained("other")
    assert "pass that one as --backbone" in call("delta.pt", "--backbone", "other").refused()
    tiny_backbone("bert").save_pretrained("right")
    assert call("delta.pt", "--backbone", "right", "-o", "b").worked().startswith("b: ")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["b", "delta.pt", "other", "right"]


def test_torch_absent(checkpoint: Path, tmp_path: Path):
    code = (
        "import sys; sys.modules['torch'] = None; from coda_compile.cli.main import main;"
        f"sys.argv = ['coda-compile', {str(checkpoint)!r}, '-o', 'b']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    message = Ended(done.returncode, done.stdout, done.stderr).refused()
    assert message == 'this needs torch, which is not installed: pip install "coda-compile[torch]"'
    assert list(tmp_path.iterdir()) == []


# A compilation that tells when it is in the middle, and waits there; with an export of the tests.
_MIDDLE = """
sys.path.append({root!r})
import coda_compile.bundling.package as package
from coda_compile.sources import torch_model
from pathlib import Path
from tests.exporting import Exports

torch_model.export = Exports(Path({exports!r})).export
write_report = package.write_report

def stop(folder, *args):
    write_report(folder, *args)
    wait(folder)

package.write_report = stop
sys.argv = ["coda-compile", {checkpoint!r}, "-o", "b"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_leaves_nothing_behind(number: signal.Signals, checkpoint: Path, tmp_path: Path):
    def half_written(line: str) -> None:
        partial = Path(line.strip())
        assert (partial.parent.parent, (partial / "report.json").is_file()) == (tmp_path, True)

    root, exports = str(Path(__file__).parents[3]), str(exporting.shared.folder)
    code = _MIDDLE.format(checkpoint=str(checkpoint), root=root, exports=exports)
    done = interrupted(number, code, half_written, cwd=tmp_path)
    assert done.refused(130) == "interrupted, nothing half-written was kept"
    assert list(tmp_path.iterdir()) == []


def test_full_disk(call: Call, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    from coda_compile.bundling import package

    write_report = package.write_report

    def full(folder: Path, *arguments: Any) -> None:
        write_report(folder, *arguments)
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "report.json"))

    monkeypatch.setattr(package, "write_report", full)
    message = call(str(checkpoint), "-o", "b").refused()
    assert message.startswith("no space left on the disk writing ")
    assert message.endswith("report.json: free some and try again; nothing was kept")
    assert list(Path.cwd().iterdir()) == []
