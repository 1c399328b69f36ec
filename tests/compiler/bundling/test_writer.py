"""A bundle is written whole or not at all, and the same every time."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_backbone, tiny_coda
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizer, PreTrainedTokenizerFast

import coda_compile.pipeline
import coda_compile.sources.torch_model
import coda_compile.verify.against_torch
from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend
from coda_compile.bundling.writer import check_output, replacing, write_tokenizer
from coda_compile.errors import CompileError, CompileWarning, OutputError
from coda_compile.passes import pass_name
from coda_models import CodaConfig, convert, save
from coda_targets import Bundle
from coda_targets.modalities.text import text_signature


@pytest.fixture(scope="module")
def model():
    return tiny_coda("bert", CodaConfig(reduction=2))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("exports_for_itself")
def test_same_inputs_same_bytes(model, compiled: Bundle, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    again = compile(model, CompileOptions(tokenizer=tokenizer), output=tmp_path / "elsewhere")
    assert contents(again.folder) == contents(compiled.folder)


def test_same_bytes_from_a_file_in_another_process(model, compiled: Bundle, tmp_path: Path):
    save(model, tmp_path / "model.pt")
    command = [sys.executable, "-m", "coda_compile", "model.pt", "-o", "out"]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "COLUMNS": "300"}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    other, first = contents(tmp_path / "out"), contents(compiled.folder)
    manifests = [json.loads(files.pop("coda.json")) for files in (other, first)]
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert other == {name: content for name, content in first.items() if name not in tokenizer_files}
    for manifest in manifests:
        manifest["files"] = [file for file in manifest["files"] if file["path"] not in tokenizer_files]
    assert manifests[0] == manifests[1]


def test_nothing_absolute(compiled: Bundle):
    for name, content in contents(compiled.folder).items():
        for text in (str(compiled.folder), str(Path.cwd()), str(Path.home()) + "/", "/tmp/"):
            assert text.encode() not in content, name


def test_files_of_a_bundle(compiled: Bundle):
    assert set(contents(compiled.folder)) >= {
        "model.onnx",
        "coda.json",
        "manifest.json",
        "expected.json",
        "report.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "test_data_set_0/input_0.pb",
        "test_data_set_0/output_0.pb",
    }


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_every_json_file_is_strict_json(compiled: Bundle):
    for path in compiled.folder.rglob("*.json"):
        strict(path)


def test_report(compiled: Bundle):
    report = strict(compiled.folder / "report.json")
    assert report["schema_version"] == 1
    (made,) = report["variants"].values()
    assert list(report["variants"]) == ["cpu"]
    assert [step["name"] for step in made["passes"]] == [pass_name(one) for one in get_backend("cpu").passes()]
    assert all({"name", "modified", "nodes", "operators", "declined"} == set(step) for step in made["passes"])
    assert made["passes"][-1]["nodes"] == sum(compiled.variant.operators.values())
    cases = made["parity"]["cases"]
    assert len(cases) >= 8
    for case in cases:
        assert 0 <= case["outputs"]["logits"] <= 5e-5 * 100
        assert case["skipped"] == 0
    assert {"scores", "gates", "outputs"} == set(made["parity"]["tolerances"])
    assert cases[0]["narrowest"] is None  # a single token leaves nothing out


def test_config_is_what_transformers_reads(compiled: Bundle):
    config = strict(compiled.folder / "config.json")
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["model_type"] == "bert"
    assert "_name_or_path" not in config
    assert "transformers_version" not in config


def test_tokenizer_alone_truncates_and_pads(compiled: Bundle):
    core = Tokenizer.from_file(str(compiled.folder / "tokenizer.json"))
    assert core.truncation["max_length"] == compiled.manifest.signature.max_length
    short, long = core.encode_batch(["good", "w1 " * 100])
    assert len(short.ids) == len(long.ids) == compiled.manifest.signature.max_length
    assert sum(short.attention_mask) == 3
    assert set(short.ids[3:]) == {0}


class Slow(PreTrainedTokenizer):
    vocab_size = 0

    def get_vocab(self) -> dict[str, int]:
        return {}


def test_slow_tokenizer_is_left_out_with_a_word(tmp_path: Path):
    """BERTweet's, for one, has no fast form at all."""
    with pytest.warns(CompileWarning, match=r"goes without a tokenizer, since Slow has no tokenizer\.json form: feed"):
        write_tokenizer(tmp_path, Slow(), text_signature(100, 8))
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_the_model_does_not_know_are_told(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    more = deepcopy(tokenizer)
    more.add_tokens(["<user>", "<url>"], special_tokens=True)
    with pytest.warns(CompileWarning, match="has 2 more tokens than the 100 that the model knows, '<url>' among them"):
        write_tokenizer(tmp_path, more, text_signature(100, 8))
    assert (tmp_path / "tokenizer.json").is_file()


def test_no_file_of_a_bundle_says_where_a_model_lay(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """Names stay, and the digest of the backbone."""
    tiny_backbone("bert").save_pretrained(tmp_path / "encoder")
    named = CodaConfig(reduction=2, backbone=str(tmp_path / "encoder"))
    model = convert(AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder"), named)
    model.hf_config.teacher_name_or_path = str(tmp_path / "teacher")
    local = deepcopy(tokenizer)
    local.init_kwargs |= {"special_tokens_map_file": str(tmp_path / "map.json"), "cache_dir": str(tmp_path)}
    bundle = compile(model, CompileOptions(tokenizer=local), output=tmp_path / "bundle")
    for path in bundle.folder.glob("*.json"):
        assert str(tmp_path) not in path.read_text("utf-8"), path.name
    assert bundle.manifest.coda_config["backbone"] == "encoder"
    assert bundle.manifest.coda_config["backbone_sha256"] == model.coda_config.backbone_sha256
    assert json.loads((bundle.folder / "config.json").read_text())["teacher_name_or_path"] == "teacher"


def test_tokenizer_without_padding_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_padding()  # which an earlier batch may have left
    bare = PreTrainedTokenizerFast(tokenizer_object=core)
    with pytest.raises(CompileError, match=r"has no padding token: set tokenizer\.pad_token and save it again"):
        write_tokenizer(tmp_path, bare, text_signature(100, 8))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_no_bundle_is_refused_and_untouched(model, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(OutputError, match=r"photos exists and is no bundle: remove it or choose another folder"):
        compile(model, output=tmp_path / "photos")
    assert contents(tmp_path) == {"photos/cat.jpg": b"cat"}


def test_file_is_refused_and_untouched(model, tmp_path: Path):
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(OutputError, match=r"notes exists and is no bundle"):
        compile(model, output=tmp_path / "notes")
    assert contents(tmp_path) == {"notes": b"precious"}


def test_device_is_refused():
    with pytest.raises(OutputError, match=r"/dev/null exists and is no bundle"):
        check_output(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("parent", ["nowhere", "a/b/c"])
def test_missing_parent(model, tmp_path: Path, parent: str):
    with pytest.raises(OutputError, match=r"does not exist: make it, or choose another folder"):
        compile(model, output=tmp_path / parent / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file(model, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        compile(model, output=tmp_path / "file" / "bundle")
    assert contents(tmp_path) == {"file": b""}


def test_name_too_long(model, tmp_path: Path):
    with pytest.raises(OutputError, match=r"File name too long"):
        compile(model, output=tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_older_bundle_is_replaced_whole(model, copied: Path, compiled: Bundle):
    again = compile(model, output=copied)
    assert again.folder == copied
    assert not (copied / "tokenizer.json").exists()  # none was given this time
    again.check()
    assert [path.name for path in copied.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["notes.txt", "README.md", ".gitattributes", "adapters/mine.pt", "test_data_set_0/x"])
def test_file_that_no_bundle_lists_is_named_and_untouched(model, copied: Path, name: str):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("precious")
    before = contents(copied.parent)
    with pytest.raises(OutputError, match=rf"bundle/{name} is not part of the bundle there: move it away"):
        compile(model, output=copied)
    assert contents(copied.parent) == before


def test_empty_folder_that_no_bundle_lists_is_named_and_untouched(model, copied: Path):
    (copied / "mine").mkdir()
    with pytest.raises(OutputError, match=r"bundle/mine is not part of the bundle there: move it away"):
        compile(model, output=copied)
    assert (copied / "mine").is_dir()


def test_link_that_no_bundle_lists_is_named_and_untouched(copied: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (copied / "photos").symlink_to(tmp_path / "photos")
    with pytest.raises(OutputError, match=r"bundle/photos is not part of the bundle there"):
        check_output(copied)


@pytest.mark.parametrize("manifest", ['{"name": "My app", "icons": []}', "no JSON", '{"schema_version": 1}'])
def test_folder_of_another_manifest_is_refused_and_untouched(model, tmp_path: Path, manifest: str):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "coda.json").write_text(manifest)
    with pytest.raises(OutputError, match=r"app exists and is no bundle"):
        compile(model, output=tmp_path / "app")
    assert contents(tmp_path) == {"app/coda.json": manifest.encode()}


@pytest.mark.usefixtures("quick")
def test_file_put_into_the_older_bundle_meanwhile_survives(model, copied: Path, monkeypatch: pytest.MonkeyPatch):
    write_config = coda_compile.pipeline.write_config

    def slow(*args: Any) -> None:
        write_config(*args)
        (copied / "notes.txt").write_text("precious")

    monkeypatch.setattr(coda_compile.pipeline, "write_config", slow)
    before = contents(copied)
    with pytest.raises(OutputError, match=r"notes\.txt is not part of the bundle there"):
        compile(model, output=copied)
    assert contents(copied) == {**before, "notes.txt": b"precious"}
    assert [path.name for path in copied.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("inside", [".", "below"])
def test_current_folder_is_refused(tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "b" / inside).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b" / inside)
    with pytest.raises(OutputError, match=r"b is the current folder or holds it and cannot be replaced: choose"):
        check_output(tmp_path / "b")


def test_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "volume")
    with pytest.raises(OutputError, match=r"volume is a mount point and cannot be replaced: .* as .*volume/NAME"):
        check_output(tmp_path / "volume")


def test_link_to_nowhere_is_filled_where_it_leads(model, tmp_path: Path, once, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "latest").symlink_to("b")
    monkeypatch.setattr(coda_compile.sources.torch_model, "export", lambda *_: once)
    monkeypatch.setattr(coda_compile.pipeline, "run_passes", lambda *_: [])
    compile(model, output=tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    Bundle(tmp_path / "b").check()


def test_bundle_behind_a_link_is_replaced_where_it_lies(copied: Path, tmp_path: Path):
    link = tmp_path / "latest"
    link.symlink_to(copied)
    with replacing(link.resolve()) as folder:
        (folder / "new").write_text("")
    assert link.is_symlink()
    assert contents(copied) == {"new": b""}


def test_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "b").mkdir()
    check_output(tmp_path / "b")
    with replacing(tmp_path / "b") as folder:
        (folder / "new").write_text("")
    assert contents(tmp_path) == {"b/new": b""}


STAGES = {
    "verify": coda_compile.verify.against_torch,
    **dict.fromkeys(("save_variants", "write_config", "write_tokenizer", "write_package"), coda_compile.pipeline),
}


@pytest.fixture(scope="module")
def once(model):
    """The model exported once, for the tests that fail afterwards."""
    exported = coda_compile.sources.torch_model.export(model, 20)
    coda_compile.pipeline.run_passes(exported, get_backend("cpu").passes())
    return exported


@pytest.fixture
def quick(once, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coda_compile.sources.torch_model, "export", lambda *_: once)
    monkeypatch.setattr(coda_compile.pipeline, "run_passes", lambda *_: [])


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Let a step do its work, then raise."""
    step = getattr(STAGES[name], name)

    def failing(*args: Any, **options: Any) -> None:
        step(*args, **options)
        raise error

    monkeypatch.setattr(STAGES[name], name, failing)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", STAGES)
def test_interrupt_leaves_nothing(
    name: str, model, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    interrupt(monkeypatch, name, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compile(model, CompileOptions(tokenizer=tokenizer), output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", STAGES)
def test_full_disk_is_one_sentence_and_leaves_nothing(
    name: str, model, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    interrupt(monkeypatch, name, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OutputError, match=r"^no space left on the disk: free some and try again; nothing was kept$"):
        compile(model, CompileOptions(tokenizer=tokenizer), output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["save_variants", "write_package"])
def test_older_bundle_survives_an_interrupt(name: str, model, copied: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(copied)
    interrupt(monkeypatch, name, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compile(model, output=copied)
    assert contents(copied) == before
    assert [path.name for path in copied.parent.iterdir()] == ["bundle"]


def test_manifest_is_written_last(model, once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever has a manifest is whole: it hashes all the rest."""
    assert {file.path for file in Bundle(_made(model, once, tmp_path, monkeypatch)).manifest.files} == set(
        contents(tmp_path / "b")
    ) - {"coda.json"}


def _made(model, once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(coda_compile.sources.torch_model, "export", lambda *_: once)
    monkeypatch.setattr(coda_compile.pipeline, "run_passes", lambda *_: [])
    return compile(model, output=tmp_path / "b").folder


def test_smallest_runtime_follows_opset_and_ir_version(once):
    @dataclasses.dataclass
    class Fake:
        opset_imports: dict[str, int]
        ir_version: int

    least = coda_compile.bundling.package._minimum_runtime
    assert least(Fake({"": 20}, 9)) == "1.17"  # type: ignore[arg-type]
    assert least(Fake({"": 20}, 10)) == "1.18"  # type: ignore[arg-type]
    assert least(Fake({"": 23}, 10)) == "1.22"  # type: ignore[arg-type]
