"""Several tasks on one backbone: each computes what its own model does, alone in a file of its own."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from tests.compiler.prepare.test_fit_ood import some_texts, write
from tests.conftest import tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.bundling.add_task import add_task
from coda_compile.errors import CodaError, CompileError, OutputError, VerificationError
from coda_compile.inspect.predict import predict
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig, CodaModel, convert, save
from coda_models.ood import METHODS
from coda_targets import Bundle
from coda_targets.bundle_files import hash_file
from coda_targets.errors import BundleError, InputError
from coda_targets.manifest import MANIFEST

IDS = np.arange(4, 37).reshape(3, 11)


def task_model(seed: int, labels: int = 3, reduction: Any = 2, **config: Any) -> CodaModel:
    """A task on the one tiny BERT: everything that is trained is its own."""
    model = tiny_coda("bert", CodaConfig(reduction=reduction, **config))
    if labels != 3:
        model.head[2] = torch.nn.Linear(32, labels)
        model.hf_config.num_labels = labels
    torch.manual_seed(seed)
    with torch.no_grad():
        for name in model.trainable_names():
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def expected(model: CodaModel) -> Any:
    with torch.inference_mode():
        return model(
            input_ids=torch.from_numpy(IDS), attention_mask=torch.ones(IDS.shape, dtype=torch.long)
        ).logits.numpy()


def same(bundle: Bundle, task: str | None, model: CodaModel) -> None:
    np.testing.assert_allclose(
        bundle.run({"input_ids": IDS}, task=task)["logits"], expected(model), atol=2e-4, rtol=1e-4
    )


MODELS = {"topics": task_model(1), "moods": task_model(2, labels=5)}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Bundle:
    folder = tmp_path_factory.mktemp("several") / "bundle"
    return compile(MODELS, CompileOptions(tokenizer=tokenizer), output=folder)


@pytest.fixture
def own(several: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    import shutil

    return Bundle(shutil.copytree(several.folder, tmp_path / "own"))


def test_each_task_computes_what_its_model_does(several: Bundle):
    assert several.tasks == ("topics", "moods")
    for task in ("moods", "topics", "moods", None):
        same(several, task, MODELS[task or "topics"])
    assert several.labels("moods") == tuple(f"LABEL_{i}" for i in range(5))
    assert several.labels() == several.labels("topics") == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_task_is_a_small_file(several: Bundle):
    sizes = {file.path: file.bytes for file in several.manifest.files}
    trained = sum(MODELS["topics"].get_parameter(name).numel() for name in MODELS["topics"].trainable_names())
    assert trained * 4 < sizes["adapters/topics.onnx_adapter"] < trained * 4 + 10_000
    assert several.variant.minimum_onnxruntime == "1.21.1"
    assert list(several.manifest.signature.names) == ["input_ids", "attention_mask", "token_type_ids"]


def test_every_task_verifies(several: Bundle):
    for task in several.tasks:
        assert verify_bundle(several, task).outputs["logits"] < 1e-4
    report = json.loads((several.folder / "report.json").read_text())
    assert {case["task"] for case in report["variants"]["cpu"]["parity"]["cases"]} == {"topics", "moods"}


def test_texts_and_routing_of_a_task(several: Bundle):
    (_, record, routed), *_ = predict(several, ["good film w3 w4 w5"], task="moods", routing=True)
    assert record["label"] in several.labels("moods")
    assert routed is not None


def test_layers_that_do_not_route_have_no_router_to_swap(tmp_path: Path):
    models = {"a": task_model(1), "b": task_model(2, labels=4)}
    bundle = compile(models, CompileOptions(reduction=[2, 1]), output=tmp_path / "bundle")
    added = add_task(bundle, "c", task_model(3))
    for task, model in {**models, "c": task_model(3)}.items():
        model.set_reduction([2, 1])
        same(added, task, model)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_stand_ins_and_thin_keys_are_a_tasks_own(precision: str, tmp_path: Path):
    thin: dict[str, Any] = {"stand_in": 4, "key_value_rank": 6, "attention": "k_to_all", "bottleneck": 0}
    form = {"reduction": [2, 1], **thin}
    models = {"a": task_model(1, **form), "b": task_model(2, labels=4, **form)}
    bundle = compile(models, CompileOptions(precision=precision), output=tmp_path / "bundle")
    added = add_task(bundle, "c", task_model(3, **form))
    if precision == "fp32":
        for task, model in {**models, "c": task_model(3, **form)}.items():
            same(added, task, model)
    with pytest.raises(CompileError, match="d has another configuration than the tasks in"):
        add_task(added, "d", task_model(4))


def test_a_bundle_of_before_there_were_stand_ins_takes_a_task(own: Bundle):
    plain = json.loads((own.folder / MANIFEST).read_text("utf-8"))
    for holder in (plain["coda_config"], *plain["layers"]):
        del holder["stand_in"], holder["key_value_rank"]
    (own.folder / MANIFEST).write_text(json.dumps(plain), "utf-8")
    assert add_task(Bundle(own.folder), "queries", task_model(3)).tasks == ("topics", "moods", "queries")


def test_a_bundle_of_several_can_be_rounded(tmp_path: Path):
    models = {"a": task_model(1), "b": task_model(2)}
    bundle = compile(models, CompileOptions(precision="int8"), output=tmp_path / "bundle")
    added = add_task(bundle, "c", task_model(3))
    for task in added.tasks:
        verify_bundle(added, task)


def test_a_task_can_be_added_later_and_nothing_else_is_touched(own: Bundle):
    before = {file.path: file.sha256 for file in own.manifest.files}
    model = task_model(3, labels=7)
    bundle = add_task(own, "later", model)
    assert bundle.tasks == ("topics", "moods", "later")
    same(bundle, "later", model)
    same(bundle, "topics", MODELS["topics"])
    after = {file.path: hash_file(bundle.folder / file.path) for file in bundle.manifest.files}
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == {"adapters"}
    assert verify_bundle(bundle, "later").outputs["logits"] < 1e-4
    assert [path.name for path in own.folder.parent.iterdir()] == ["own"]


def test_two_that_add_at_once_both_add(own: Bundle):
    """The second waits for the first, then adds to what it made."""
    inside, waiting = Event(), Event()
    stages: dict[str, list[str]] = {"first": [], "second": []}

    def staged(who: str) -> Callable[[str], AbstractContextManager[None]]:
        @contextmanager
        def stage(name: str) -> Iterator[None]:
            stages[who].append(name)
            if (who, name) == ("first", "verify"):
                inside.set()
                assert waiting.wait(30)
            if (who, name) == ("second", "wait for another coda-compile"):
                waiting.set()
            yield

        return stage

    with ThreadPoolExecutor() as pool:
        first = pool.submit(add_task, own, "first", task_model(3), stage=staged("first"))
        assert inside.wait(30)
        pool.submit(add_task, Bundle(own.folder), "second", task_model(4), stage=staged("second")).result()
        first.result()
    assert stages == {"first": ["load", "verify"], "second": ["wait for another coda-compile", "load", "verify"]}
    bundle = Bundle(own.folder)
    assert bundle.tasks == ("topics", "moods", "first", "second")
    for task, seed in (("first", 3), ("second", 4)):
        same(bundle, task, task_model(seed))
        verify_bundle(bundle, task)


def test_file_of_nobodys_is_not_made_a_part_of_the_bundle(own: Bundle):
    (own.folder / "README.md").write_text("precious")
    with pytest.raises(OutputError, match=r"README\.md is not part of the bundle there: move it away"):
        add_task(own, "c", task_model(3))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("topics", lambda: task_model(3), "has a task 'topics' already: rename the checkpoint"),
        ("../x", lambda: task_model(3), "'../x' cannot name a task: use up to 64 letters"),
        ("c", lambda: task_model(3, bottleneck=32), "c has another configuration than the tasks in"),
        (
            "c",
            lambda: convert(tiny_backbone("bert", seed=5), CodaConfig(reduction=2)),
            "c was trained on another backbone than the tasks in",
        ),
    ],
)
def test_tasks_that_cannot_be_added(own: Bundle, name: str, make: Any, message: str):
    before = sorted(path.name for path in own.folder.rglob("*"))
    with pytest.raises(CompileError, match=message):
        add_task(own, name, make())
    assert sorted(path.name for path in own.folder.rglob("*")) == before


def shorter(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A checkpoint whose tokenizer cuts texts at 20 tokens."""
    words = deepcopy(tokenizer)
    words.model_max_length = 20
    save(task_model(3), folder / "short.pt", tokenizer=words)
    return folder / "short.pt"


def test_a_task_that_cuts_texts_elsewhere(own: Bundle, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    path = shorter(tmp_path, tokenizer)
    with pytest.raises(CompileError, match="c cuts texts at 20 tokens and the tasks in .* at 66: compile it into a"):
        add_task(own, "c", path)
    save(task_model(1), tmp_path / "long.pt", tokenizer=tokenizer)
    with pytest.raises(CompileError, match="a and b have different longest texts: compile them into bundles of their"):
        compile({"a": tmp_path / "long.pt", "b": path}, output=tmp_path / "b")


def test_a_task_with_another_head(own: Bundle):
    model = task_model(3)
    model.head[2] = torch.nn.Linear(32, 3, bias=False)
    with pytest.raises(CompileError, match="c has another head than the tasks in"):
        add_task(own, "c", model)


def test_a_task_that_does_not_verify_is_not_added(own: Bundle, monkeypatch: pytest.MonkeyPatch):
    model = task_model(3)
    wrong = task_model(4)
    write = __import__("coda_compile.bundling.tasks", fromlist=["write"]).write
    monkeypatch.setattr("coda_compile.bundling.tasks.write", lambda folder, name, _: write(folder, name, wrong))
    with pytest.raises(VerificationError, match=r"reproduction in .*own-failed"):
        add_task(own, "c", model)
    assert Bundle(own.folder).tasks == ("topics", "moods")
    assert (own.folder.with_name("own-failed") / "task.onnx_adapter").is_file()


def test_a_bundle_of_one_task_takes_no_other(compiled: Bundle):
    with pytest.raises(CompileError, match="was compiled for one task: compile it anew with all the checkpoints"):
        add_task(compiled, "c", task_model(3))


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "there is no model to compile"),
        ({"a b": task_model(1)}, {}, "'a b' cannot name a task"),
        (
            {"a": task_model(1), "b": convert(tiny_backbone("bert", seed=5), CodaConfig(reduction=2))},
            {},
            "a and b have different backbones: compile them into bundles of their own",
        ),
        ({"a": task_model(1), "b": task_model(2, attention="k_to_all")}, {}, "a and b have different configurations"),
        ({"a": tiny_coda("bert", CodaConfig(reduction=1, bottleneck=0))}, {}, "a has no adapters to swap"),
        (
            {"a": task_model(1), "b": task_model(2)},
            {"ood": "energy", "ood_data": "x.csv"},
            "several tasks need ood_data once for each",
        ),
    ],
)
def test_tasks_that_cannot_share_a_bundle(
    tmp_path: Path, models: dict[str, CodaModel], options: dict[str, Any], message: str
):
    with pytest.raises(CodaError, match=message):
        compile(models, CompileOptions(**options), output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS)
def test_each_task_knows_its_own_texts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, method: str):
    """Fitted on different numbers of texts and classes, so that nothing of a detector has a fixed size."""
    known = {}
    for name, texts, labels in (("a", 150, 3), ("b", 120, 2)):
        rows = [(text, f"LABEL_{i % labels}") for i, text in enumerate(some_texts(texts, seed=labels))]
        known[name] = write(tmp_path / f"{name}.csv", rows)
    models = {"a": task_model(1), "b": task_model(2, labels=5)}
    bundle = compile(
        models, CompileOptions(tokenizer=tokenizer, ood=method, ood_data=known), output=tmp_path / "bundle"
    )
    for task in bundle.tasks:
        ood = bundle.ood(task)
        assert ood is not None
        outputs = bundle.run({"input_ids": IDS}, task=task)
        assert (outputs["is_ood"] == (outputs["ood_score"] > np.float32(ood.threshold))).all()
        verify_bundle(bundle, task)
    assert bundle.ood("a") != bundle.ood("b")
    with pytest.raises(CompileError, match="c has another head"):
        add_task(bundle, "c", task_model(3))


def test_heads_that_the_graph_rewrites_cannot_be_swapped(tmp_path: Path):
    config = CodaConfig(reduction=2, task="token-classification")
    models = {name: tiny_coda("bert", config, seed=0) for name in "ab"}
    with pytest.raises(CompileError, match=r"the graph holds model\.head\.\S+ in another form"):
        compile(models, output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_unknown_task(several: Bundle, compiled: Bundle):
    with pytest.raises(InputError, match="task 'x' is unknown: use one of topics, moods"):
        several.run({"input_ids": IDS}, task="x")
    with pytest.raises(InputError, match="task 'x' is unknown: this bundle has but one"):
        compiled.run({"input_ids": IDS}, task="x")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"hello")])
def test_damaged_task(own: Bundle, damage: Any):
    damage(own.folder / "adapters" / "moods.onnx_adapter")
    with pytest.raises(BundleError, match=r"moods\.onnx_adapter is missing or damaged: .*; compile the task again"):
        own.run({"input_ids": IDS}, task="moods")
    with pytest.raises(BundleError, match=r"moods\.onnx_adapter is (missing|damaged)"):
        verify_bundle(own)


def test_a_task_outside_the_bundle_is_refused(own: Bundle):
    path = own.folder / "coda.json"
    plain = json.loads(path.read_text())
    plain["tasks"][1]["adapter"] = "../moods.onnx_adapter"
    path.write_text(json.dumps(plain))
    with pytest.raises(BundleError, match="which lies outside the bundle: do not use this bundle"):
        Bundle(own.folder)
