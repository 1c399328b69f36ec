"""A package of several variants: what is in it, which one runs, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.compiler.commands import Call
from tests.conftest import tiny_coda
from tests.targets.test_links import hub_cache
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.bundling.writer import check_output
from coda_compile.errors import CompileError, OutputError
from coda_compile.sources import find_onnx, read_source, torch_model
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig, CodaModel
from coda_targets import Bundle, BundleError, TargetError, get_runtime
from coda_targets.bundle_files import list_files
from coda_targets.manifest import MANIFEST, PACKAGE, WEIGHTS, read_manifest

OPTIONS = CompileOptions(target=("cpu", "null"), precision=("fp32", "int8"))
NAMES = ["cpu", "cpu-int8", "null", "null-int8"]
NULL = get_runtime("null")
IDS = np.array([[2, 5, 6, 7, 3]])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Bundle:
    """For CPUs in two precisions, and for nothing at all."""
    model = tiny_coda("bert", CodaConfig(reduction=2))
    return compile(model, replace(OPTIONS, tokenizer=tokenizer), output=tmp_path_factory.mktemp("several") / "bundle")


@pytest.fixture
def mine(several: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(several.folder, tmp_path / "bundle"))


def edit(folder: Path, **changes: dict[str, Any]) -> None:
    """Change what the manifest says of variants, by name."""
    plain = json.loads((folder / MANIFEST).read_text("utf-8"))
    plain["variants"] = [{**one, **changes.get(one["name"].replace("-", "_"), {})} for one in plain["variants"]]
    (folder / MANIFEST).write_text(json.dumps(plain), "utf-8")


def test_files(several: Bundle):
    variants = several.manifest.variants
    assert [one.name for one in variants] == NAMES
    assert [one.models["model"] for one in variants] == [
        "model.onnx",
        "model-cpu-int8.onnx",
        "model-null.onnx",
        "model-null-int8.onnx",
    ]
    assert {path.name for path in several.folder.glob("*.onnx")} == {one.models["model"] for one in variants}
    listed = {file.path for file in several.manifest.files}
    assert {PACKAGE, WEIGHTS, "test_data_set_0/input_0.pb", "variants/cpu-int8/expected.json"} <= listed
    assert several.manifest.files == list_files(several.folder)


def test_targets_compile_their_copies_of_an_export_as_if_each_were_alone(
    several: Bundle, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    null = compile(model, replace(OPTIONS, target="null", tokenizer=tokenizer), output=tmp_path / "null")
    graphs = _graphs(several)
    assert _graphs(null) == {name: graphs[name] for name in ("null", "null-int8")}


def _graphs(bundle: Bundle) -> dict[str, bytes]:
    """By the names of variants their graphs, weights and all, wherever those lie."""
    found = {}
    for one in bundle.manifest.variants:
        proto = onnx.load(str(bundle.folder / one.models["model"]))
        for tensor in proto.graph.initializer:
            tensor.ClearField("data_location")
        found[one.name] = proto.SerializeToString(deterministic=True)
    return found


def test_equal_weights_are_stored_once(several: Bundle):
    fp32, int8, *null = (one.external_bytes for one in several.manifest.variants)
    assert [fp32, int8] == null  # the same graphs
    assert fp32 > int8 > 0
    once = 32 * 100 * 4  # the table of words
    assert (several.folder / WEIGHTS).stat().st_size >= once
    held = [tensor.nbytes for tensor in _tensors(several.folder / "model.onnx") if tensor.nbytes >= 1024]
    assert sum(held) == 0


def _tensors(path: Path) -> list[Any]:
    proto = onnx.load(str(path), load_external_data=False)
    return [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_location != t.EXTERNAL]


def test_the_first_that_runs_is_taken(several: Bundle):
    assert several.variant.name == "cpu"
    assert repr(several) == f"Bundle('{several.folder}', variant='cpu')"
    assert several.run({"input_ids": IDS})["logits"].shape == (1, 3)
    assert several.runtime.name == "cpu"


def test_order_is_preference(mine: Path):
    plain = json.loads((mine / MANIFEST).read_text("utf-8"))
    plain["variants"].reverse()
    (mine / MANIFEST).write_text(json.dumps(plain), "utf-8")
    assert Bundle(mine).variant.name == "cpu-int8"  # nothing runs the null target


def test_a_variant_that_needs_a_newer_onnxruntime_is_passed_over(mine: Path):
    edit(mine, cpu={"minimum_onnxruntime": "99.1"})
    assert Bundle(mine).variant.name == "cpu-int8"


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"target": "cpu"}, "cpu"),
        ({"precision": "int8"}, "cpu-int8"),
        ({"target": "cpu", "precision": "int8"}, "cpu-int8"),
        ({"target": "null"}, "null"),
        ({"precision": "fp32"}, "cpu"),
    ],
)
def test_a_variant_by_name(several: Bundle, asked: dict[str, str], name: str):
    bundle = Bundle(several.folder, **asked)
    assert bundle.variant.name == name
    assert bundle.model_path.name == bundle.variant.models["model"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target": "openvino"}, "for openvino"),
        ({"precision": "int4"}, "int4"),
        ({"target": "null", "precision": "int4"}, "for null in int4"),
    ],
)
def test_an_unknown_variant_is_refused_with_those_there_are(several: Bundle, asked: dict[str, str], said: str):
    with pytest.raises(TargetError) as caught:
        Bundle(several.folder, **asked)
    assert str(caught.value) == (
        f"{several.folder} has no variant {said}: it has cpu fp32, cpu int8, null fp32, null int8"
    )


def test_where_nothing_runs_each_variant_says_what_is_missing(mine: Path):
    edit(mine, cpu={"minimum_onnxruntime": "99.1"}, cpu_int8={"target": "abacus"})
    bundle = Bundle(mine)
    assert bundle.variant.name == "cpu"
    with pytest.raises(TargetError) as caught:
        bundle.run({"input_ids": IDS})
    message = str(caught.value)
    assert message.startswith(f"no variant of {mine} runs here: cpu: the model needs onnxruntime 99.1 or newer")
    assert "; cpu-int8: target 'abacus' is unknown" in message
    assert "; null: target 'null' cannot run here" in message


def test_outputs_differ_by_precision_and_no_more(several: Bundle):
    fp32, int8 = (Bundle(several.folder, precision=name).run({"input_ids": IDS})["logits"] for name in ("fp32", "int8"))
    assert 0 < np.abs(fp32 - int8).max() < 0.5


def test_every_variant_has_its_own_reference_vectors(several: Bundle):
    for one in several.manifest.variants[:2]:
        verify_bundle(Bundle(several.folder, target=one.target, precision=one.precision))


def test_verify_names_what_it_cannot_run(several: Bundle, call: Call):
    lines = call("verify", str(several.folder)).worked().splitlines()
    assert lines[0].startswith("cpu: intact and right: scores within ")
    assert lines[1].startswith("cpu-int8: intact and right: scores within ")
    assert lines[2].startswith("null: not run here: target 'null' cannot run here")


def test_verify_fails_where_it_can_run_none(mine: Path, call: Call):
    edit(mine, cpu={"minimum_onnxruntime": "99.1"}, cpu_int8={"minimum_onnxruntime": "99.1"})
    ended = call("verify", str(mine))
    assert ended.status == 1
    sentence = ended.refused()
    assert sentence.startswith(
        f"{mine} is intact, and its outputs were not verified, as no variant runs here: cpu: the"
    )
    assert "; null-int8: target 'null' cannot run here" in sentence


def test_verify_asks_for_variants_by_name(several: Bundle, call: Call):
    (line,) = call("verify", str(several.folder), "-t", "cpu", "-p", "int8").worked().splitlines()
    assert line.startswith("cpu-int8: intact and right")
    refused = call("verify", str(several.folder), "-t", "null", "-p", "fp32").refused()
    assert refused.endswith("as no variant runs here: null: target 'null' cannot run here: " + NULL.install)
    elsewhere = call("verify", str(several.folder), "-t", "cpu", "--device", "1").refused()
    assert "cpu-int8: target 'cpu' has one device and all of its memory: leave device" in elsewhere
    assert call("verify", str(several.folder), "-t", "abacus").refused().startswith(f"{several.folder} has no variant")


def test_verify_fails_on_any_variant(mine: Path, call: Call):
    model = onnx.load(str(mine / "model-cpu-int8.onnx"), load_external_data=False)
    bias = next(t for t in model.graph.initializer if t.name.endswith("head.projection.bias") or t.dims == [3])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, 9, np.float32), bias.name))
    onnx.save(model, str(mine / "model-cpu-int8.onnx"))
    (mine / MANIFEST).write_text(_relisted(mine), "utf-8")
    ended = call("verify", str(mine))
    assert ended.status == 1
    assert ended.out.startswith("cpu: intact and right")


def _relisted(folder: Path) -> str:
    return replace(read_manifest(folder), files=list_files(folder)).dump()


def test_another_list_of_variants_for_onnxruntime_is_damage(mine: Path):
    plain = json.loads((mine / PACKAGE).read_text("utf-8"))
    variants = plain["components"]["model"]["variants"]
    variants["cpu"]["executor_info"]["ort"]["model_file"] = "model-cpu-int8.onnx"
    (mine / PACKAGE).write_text(json.dumps(plain), "utf-8")
    (mine / MANIFEST).write_text(_relisted(mine), "utf-8")
    with pytest.raises(BundleError, match=r"its manifest\.json lists other variants than coda\.json"):
        verify_bundle(Bundle(mine))


def test_inspect_shows_every_variant(several: Bundle, call: Call):
    out = call("inspect", str(several.folder)).worked()
    for name, here in zip(NAMES, ("taken", "runs", "cannot run", "cannot run"), strict=True):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert line.rstrip().endswith(here)
    assert f"in {WEIGHTS}" in out
    assert "operators of cpu-int8\n" in out


def test_run_takes_a_variant(several: Bundle, call: Call):
    verbose = call("run", str(several.folder), "good film", "--verbose", "--precision", "int8")
    assert verbose.status == 0
    assert "running variant cpu-int8" in verbose.err
    assert "has no variant int4: it has cpu fp32" in call("run", str(several.folder), "good", "-p", "int4").refused()


def test_explain_takes_a_variant(several: Bundle, call: Call):
    out = call("explain", str(several.folder), "--precision", "int8", "--tokens", "4", "--runs", "1").worked()
    assert "Int8Linear" in out


def test_a_package_of_links_is_as_good(several: Bundle, tmp_path: Path):
    snapshot = hub_cache(several.folder, tmp_path)
    for one in several.manifest.variants[:2]:
        asked = {"target": one.target, "precision": one.precision}
        expected = Bundle(several.folder, **asked).run({"input_ids": IDS})["logits"]
        bundle = Bundle(snapshot, **asked)
        np.testing.assert_array_equal(bundle.run({"input_ids": IDS})["logits"], expected)
        verify_bundle(bundle)


def test_shared_weights_that_are_a_link_to_something_else_are_not_read(mine: Path, tmp_path: Path):
    content = (mine / WEIGHTS).read_bytes()
    (tmp_path / "other").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (mine / WEIGHTS).unlink()
    (mine / WEIGHTS).symlink_to(tmp_path / "other")
    with pytest.raises(BundleError, match=r"weights\.data is damaged: its SHA-256 is not the manifest's"):
        _ = Bundle(mine).session


def test_a_package_of_another_tool_is_no_source_and_not_replaced(several: Bundle, mine: Path):
    (mine / MANIFEST).unlink()
    assert find_onnx(mine) is None
    with pytest.raises(CompileError, match=r"is a model package of ONNX Runtime: give the model that it was made from"):
        read_source(mine)
    with pytest.raises(OutputError, match=r"exists and is no bundle"):
        check_output(mine)
    with pytest.raises(BundleError, match=r"is no bundle: it has no coda\.json"):
        Bundle(mine)


def test_same_variants_same_bytes_and_each_precision_is_exported_once(
    several: Bundle, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exported: list[int] = []

    def counted(model: CodaModel, opset: int) -> ir.Model:
        exported.append(opset)
        return export(model, opset)

    export = torch_model.export
    monkeypatch.setattr(torch_model, "export", counted)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    again = compile(model, replace(OPTIONS, tokenizer=tokenizer), output=tmp_path / "again")
    assert again.manifest == several.manifest
    assert exported == [20, 20]
