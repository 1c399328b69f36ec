"""Routing by the library: every source comes back as a checkpoint that computes what was measured, or is refused."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from sentence_transformers.sentence_transformer import modules
from tests.compiler.sources.test_peft import adapted
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_backbone, tiny_coda
from tests.sentences import save_sentence
from transformers import PreTrainedTokenizerFast

from coda_compile import RouteOptions, route
from coda_compile.errors import CodaError, CompileError, CompileWarning, OptionError
from coda_compile.sources import read_source
from coda_compile.text_files import Row
from coda_compile.tune import fits as tune_fits
from coda_compile.tune.agreement import agreement, answers, kind_of
from coda_compile.tune.route import Front
from coda_compile.tune.texts import batches, hold_out
from coda_models import CodaConfig, CodaModel, load, save
from coda_models.errors import CheckpointError, ConfigError, UnsupportedModelError

SMALL: dict[str, Any] = {"stand_in": 8, "key_value_rank": 8}
TEXTS = random_texts(80)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Makes a Hugging Face folder."""

    def make(task: str = "sequence-classification", family: str = "bert", **settings: Any) -> Path:
        backbone = tiny_backbone(family, task)
        backbone.config.update(settings)
        backbone.save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
        return tmp_path / "m"

    return make


def routed(model: Path | CodaModel, texts: Path, output: Path, **options: Any) -> Front:
    reductions: Sequence[Any] = options.pop("reductions", [2])
    return route(model, texts, RouteOptions(**{**SMALL, **options}), reductions=reductions, output=output)


def check_figures(front: Front, dense: CodaModel, tokenizer: PreTrainedTokenizerFast, backbone: Any = None) -> None:
    """The checkpoint, read again, gives the figures that were told, on texts that were held out."""
    rows = [Row(text, "", "") for text in TEXTS]
    held_out = hold_out(rows, Path("texts.txt"), 0).held_out
    (one,) = front.routed
    again = read_source(one.path, backbone=backbone).model
    assert again.coda_config.stand_in == 8
    assert again.signature.max_length == dense.signature.max_length
    given, wanted = (answers(model, batches(held_out, tokenizer, dense.signature)) for model in (again, dense))
    assert agreement(kind_of(dense), wanted, given) == one.agreement
    assert 0 < one.share < 1.5  # a stand-in of rank 8 is no small part of a layer of width 32
    assert (front.held_out, front.fitted_on) == (16, 64)


@pytest.mark.parametrize(
    ("task", "settings", "figure"),
    [
        ("sequence-classification", {}, "same label"),
        ("sequence-classification", {"problem_type": "multi_label_classification"}, "same labels"),
        ("sequence-classification", {"problem_type": "regression"}, "rank correlation"),
        ("token-classification", {}, "same tags"),
        ("feature-extraction", {}, "cosine"),
    ],
)
def test_every_task_of_a_hugging_face_folder(
    task: str,
    settings: dict[str, Any],
    figure: str,
    folder: Callable[..., Path],
    texts: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
):
    model = folder(task, **settings)
    front = routed(model, texts, tmp_path / "routed.pt")
    assert figure in front.routed[0].agreement
    check_figures(front, read_source(model).model, tokenizer)
    assert front.routed[0].accuracy == front.accuracy == {}


@pytest.mark.parametrize("family", ["roberta", "distilbert", "mpnet", "roberta-prelayernorm"])
def test_every_family(
    family: str, folder: Callable[..., Path], texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    model = folder(family=family)
    check_figures(routed(model, texts, tmp_path / "routed.pt"), read_source(model).model, tokenizer)


def test_full_ranks_at_a_small_r_agree_more_than_thin_ones_at_a_large_one(
    folder: Callable[..., Path], texts: Path, tmp_path: Path
):
    model = folder("feature-extraction")
    near = routed(model, texts, tmp_path / "near.pt", stand_in=32, key_value_rank=0, reductions=["2"])
    far = routed(model, texts, tmp_path / "far.pt", stand_in=1, key_value_rank=1, reductions=[8])
    assert near.routed[0].agreement["cosine"].middle > far.routed[0].agreement["cosine"].middle
    assert near.routed[0].share > far.routed[0].share


def test_a_lora_is_merged(texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    adapted(tmp_path / "m", peft.LoraConfig(task_type="SEQ_CLS", r=4))
    tokenizer.save_pretrained(tmp_path / "m")
    front = routed(tmp_path / "m", texts, tmp_path / "routed.pt")
    check_figures(front, read_source(tmp_path / "m").model, tokenizer)


def test_a_sentence_folder_keeps_its_modules_and_its_length(
    texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    folder = save_sentence(tmp_path / "m", tokenizer, modules.Dense(32, 8), modules.Normalize())
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": 9}))
    front = routed(folder, texts, tmp_path / "routed.pt")
    dense = read_source(folder)
    assert dense.tokenizer is not None
    assert dense.model.signature.max_length == 9
    check_figures(front, dense.model, dense.tokenizer)
    assert [one.kind for one in load(tmp_path / "routed.pt").model.coda_config.modules] == ["Dense", "Normalize"]
    assert list(front.routed[0].agreement) == ["cosine", "same 10 neighbours"]


def test_prompts_are_not_kept_in_silence(texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    folder = save_sentence(tmp_path / "m", tokenizer, prompts={"query": "w1"})
    with pytest.warns(CompileWarning, match="a checkpoint keeps no prompts of sentence-transformers"):
        routed(folder, texts, tmp_path / "routed.pt")


def test_a_dense_adapter_with_its_tokenizer(texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    save(tiny_coda("bert", CodaConfig(reduction=1)), tmp_path / "m.pt", tokenizer=tokenizer)
    front = routed(tmp_path / "m.pt", texts, tmp_path / "routed.pt")
    check_figures(front, read_source(tmp_path / "m.pt").model, tokenizer)


def test_a_delta_of_a_delta(texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    base = tmp_path / "base"
    tiny_backbone("bert").save_pretrained(base)
    tokenizer.save_pretrained(base)
    save(tiny_coda("bert", CodaConfig(reduction=1)), tmp_path / "m.pt", delta=True)
    front = routed(tmp_path / "m.pt", texts, tmp_path / "routed.pt", backbone=base)
    assert front.backbone == base
    check_figures(front, read_source(tmp_path / "m.pt", backbone=str(base)).model, tokenizer, str(base))
    size = torch.load(tmp_path / "routed.pt", weights_only=True)["state"]
    assert not any(".block.attention" in name for name in size)


def test_a_model_in_memory_stays_as_it_is(texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    routed(model, texts, tmp_path / "routed.pt", tokenizer=tokenizer)
    assert model.coda_config.stand_in == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(OptionError, match="this model has no tokenizer to read texts with: give a tokenizer"):
        routed(model, texts, tmp_path / "other.pt")


def test_a_front_of_several_r_is_several_files(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    front = routed(folder(), texts, tmp_path / "x-{r}.pt", reductions=["2", "7/2", ["2", "1"]])
    assert [one.reduction for one in front.routed] == ["2", "7/2", "2,1"]
    assert [one.path.name for one in front.routed] == ["x-2.pt", "x-7_2.pt", "x-2,1.pt"]
    assert [str(load(one.path).model.coda_config.reduction) for one in front.routed[:2]] == ["2", "7/2"]
    shares = [one.share for one in front.routed]
    assert shares[1] < shares[0]


def test_accuracy_by_labels_that_no_fit_sees(folder: Callable[..., Path], tmp_path: Path):
    """Wrong labels change the accuracy and nothing else."""
    rows = [{"text": text, "kind": f"LABEL_{i % 3}"} for i, text in enumerate(TEXTS)]
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = folder()
    with_labels = routed(model, lines, tmp_path / "a.pt", label_column="kind")
    without = routed(model, lines, tmp_path / "b.pt")
    mine, yours = (load(tmp_path / name).model.state_dict() for name in ("a.pt", "b.pt"))
    assert all(torch.equal(mine[name], yours[name]) for name in mine)
    one = with_labels.routed[0]
    assert one.agreement == without.routed[0].agreement
    assert one.lost is not None
    lost = 100 * (with_labels.accuracy["accuracy"].middle - one.accuracy["accuracy"].middle)
    assert one.lost.middle == pytest.approx(lost)


def test_texts_to_measure_with_may_be_another_file(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    model, others = folder(), random_texts(60, seed=1)
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("\n".join(others) + "\n")
    front = routed(model, texts, tmp_path / "r.pt", held_out=unseen)
    assert (front.held_out, front.fitted_on) == (60, 80)
    again, dense = read_source(tmp_path / "r.pt"), read_source(model)
    read = batches([Row(text, "", "") for text in others], dense.tokenizer, dense.model.signature)
    given, wanted = (answers(source.model, read) for source in (again, dense))
    assert agreement("label", wanted, given) == front.routed[0].agreement


def test_labels_of_a_regression_are_numbers(folder: Callable[..., Path], tmp_path: Path):
    data = tmp_path / "texts.csv"
    data.write_text("text,score\n" + "".join(f"{text},{i / 7}\n" for i, text in enumerate(TEXTS)))
    backbone = tiny_backbone("bert")
    backbone.config.num_labels, backbone.num_labels = 1, 1
    backbone.classifier = torch.nn.Linear(32, 1)
    model = folder()
    backbone.save_pretrained(model)
    front = routed(model, data, tmp_path / "routed.pt", label_column="score")
    assert set(front.accuracy) == {"rank correlation with labels", "R² with labels"}
    assert front.routed[0].lost is None


def test_what_the_logits_mean_may_be_said(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    options = {"problem_type": "multi_label_classification", "labels": ["a", "b", "c"]}
    front = routed(folder(), texts, tmp_path / "routed.pt", **options)
    assert "same labels" in front.routed[0].agreement
    config = load(tmp_path / "routed.pt").model.hf_config
    assert (config.problem_type, config.id2label[1]) == ("multi_label_classification", "b")


def test_one_class_only_works_and_is_told_of(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    model = folder()
    backbone = tiny_backbone("bert")
    with torch.no_grad():
        backbone.classifier.bias[2] += 1000
    backbone.save_pretrained(model)
    with pytest.warns(CompileWarning, match="gives the same label to all 16 held-out texts"):
        front = routed(model, texts, tmp_path / "routed.pt")
    assert front.routed[0].agreement["same label"].middle == 1.0


def test_the_same_texts_give_the_same_model(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    model = folder()
    first, again = (routed(model, texts, tmp_path / name, seed=3) for name in ("a.pt", "b.pt"))
    assert first.routed[0].agreement == again.routed[0].agreement
    mine, yours = (load(tmp_path / name).model.state_dict() for name in ("a.pt", "b.pt"))
    assert all(torch.equal(mine[name], yours[name]) for name in mine)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attention": "k_to_k"}, OptionError, "no keys: leave key_value_rank out"),
        ({"labels": ["a", "b", "a"]}, OptionError, "labels names 'a' twice: give each class a name of its own"),
        ({"stand_in": 0}, OptionError, "stand_in 0 leaves nothing for the tokens that skip a layer"),
        ({"reductions": [1]}, OptionError, "reduction 1 is the dense model itself: give 2 or more"),
        ({"reductions": [["1", "1"]]}, OptionError, "reduction 1 is the dense model itself"),
        ({"reductions": [2, 4]}, OptionError, r"several r need a file each: write \{r\} where r goes in output"),
        (
            {"reductions": [2, "2"], "output": "x-{r}.pt"},
            OptionError,
            r"two models would go to .*x-2\.pt: give each red",
        ),
        ({"reductions": ["0"]}, ConfigError, "reduction 0 is below 1"),
        ({"reductions": [["2", "2", "2"]]}, ConfigError, "reduction lists 3 layers but the model has 2"),
        ({"label_column": "kind"}, CodaError, "texts.txt has no column 'kind': give labels in a .csv or .jsonl file"),
        ({"labels": ["a"]}, OptionError, "labels names 1 classes but this model tells 3 apart"),
        ({"backbone": "somewhere"}, OptionError, "is complete: leave backbone out"),
        ({"stand_in": 4000}, ConfigError, "tokens of these texts, and stand-ins of rank 4000 need 4001 or more"),
    ],
)
def test_refused_options_leave_nothing_behind(
    options: dict[str, Any],
    error: type[CodaError],
    message: str,
    folder: Callable[..., Path],
    texts: Path,
    tmp_path: Path,
):
    model = folder()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        routed(model, texts, tmp_path / options.pop("output", "routed.pt"), **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_without_a_name(folder: Callable[..., Path], texts: Path):
    with pytest.raises(OptionError, match="output . is a folder: name a file in it"):
        routed(folder(), texts, Path())


def test_more_than_the_dense_model_computes_is_told_of(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    with pytest.warns(CompileWarning, match=r"^at r = 2 the layers take 1\d\d% of the dense model's multiply-adds"):
        routed(folder(), texts, tmp_path / "routed.pt", stand_in=60, key_value_rank=30)


@pytest.mark.parametrize("task", ["token-classification", "feature-extraction"])
def test_labels_of_a_task_that_has_none_for_texts(task: str, folder: Callable[..., Path], tmp_path: Path):
    data = tmp_path / "texts.csv"
    data.write_text("text,label\n" + "".join(f"{text},0\n" for text in TEXTS))
    with pytest.raises(
        OptionError, match=f"label_column is for models that give a text labels .*, and this one does {task}"
    ):
        routed(folder(task), data, tmp_path / "routed.pt", label_column="label")


def test_labels_that_the_model_does_not_know(folder: Callable[..., Path], tmp_path: Path):
    data = tmp_path / "texts.csv"
    names = ["LABEL_0"] * 79 + ["spam"]
    data.write_text("text,label\n" + "".join(f"{text},{name}\n" for text, name in zip(TEXTS, names, strict=True)))
    with pytest.raises(
        CodaError, match="line 81 of .* has the label 'spam': this model knows LABEL_0, LABEL_1, LABEL_2"
    ):
        routed(folder(), data, tmp_path / "routed.pt", label_column="label")
    assert not (tmp_path / "routed.pt").exists()


def test_a_model_that_routes_already(texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    save(tiny_coda("bert", CodaConfig(reduction=[4, 1])), tmp_path / "m.pt", tokenizer=tokenizer)
    with pytest.raises(
        CompileError, match="this model routes already, at r = 4,1: give the dense one, or compile it as"
    ):
        routed(tmp_path / "m.pt", texts, tmp_path / "routed.pt")
    dense = CodaConfig(reduction=1, stand_in=8)
    save(tiny_coda("bert", dense), tmp_path / "s.pt", tokenizer=tokenizer)
    with pytest.raises(UnsupportedModelError, match="this model has stand-ins already: route the dense one"):
        routed(tmp_path / "s.pt", texts, tmp_path / "routed.pt")


def test_an_output_that_cannot_be_written(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    model = folder()
    with pytest.raises(CodaError, match="no/such does not exist: make it, or write routed.pt elsewhere"):
        routed(model, texts, tmp_path / "no" / "such" / "routed.pt")
    with pytest.raises(CodaError, match="is a folder: name a file in it"):
        routed(model, texts, tmp_path)
    with pytest.raises(CodaError, match=r"texts\.txt exists and is no earlier result"):
        routed(model, texts, texts)


def test_the_model_itself_is_not_written_over(texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    save(tiny_coda("bert", CodaConfig(reduction=1)), tmp_path / "m.pt", tokenizer=tokenizer)
    before = (tmp_path / "m.pt").read_bytes()
    with pytest.raises(OptionError, match=r"output .*m\.pt is the model itself: name another file"):
        routed(tmp_path / "m.pt", texts, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_bytes() == before


def test_an_older_file_stays_where_a_fit_fails(
    folder: Callable[..., Path], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = folder()
    routed(model, texts, tmp_path / "routed.pt")
    before = (tmp_path / "routed.pt").read_bytes()
    made = tune_fits.route_model

    def broken(*args: Any, **options: Any) -> CodaModel:
        model = made(*args, **options)
        with torch.no_grad():
            next(model.coda_layers()).stand_in.up.fill_(np.nan)
        return model

    monkeypatch.setattr(tune_fits, "route_model", broken)
    with pytest.raises(CheckpointError, match="holds NaN or infinite weights"):
        routed(model, texts, tmp_path / "routed.pt")
    assert (tmp_path / "routed.pt").read_bytes() == before


def test_stages_and_progress_are_told(folder: Callable[..., Path], texts: Path, tmp_path: Path):
    stages, steps = [], []
    route(
        folder(),
        texts,
        RouteOptions(**SMALL),
        reductions=[2],
        output=tmp_path / "routed.pt",
        stage=lambda name: nullcontext(stages.append(name)),
        progress=lambda *told: steps.append(told),
    )
    assert stages == ["load", "read", "routers", "route r=2", "measure", "save"]
    assert {what for what, _, _ in steps} >= {"routers", "stand-ins", "readout"}


def test_routers_are_fitted_once_for_all_r(
    folder: Callable[..., Path], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, fitted = folder(), []
    fit = tune_fits.fitted_routers
    monkeypatch.setattr(tune_fits, "fitted_routers", lambda *args, **more: fitted.append(1) or fit(*args, **more))
    routed(model, texts, tmp_path / "x-{r}.pt", reductions=[2, 4])
    routed(model, texts, tmp_path / "alone.pt", reductions=[4])
    assert len(fitted) == 2
    mine, yours = (load(tmp_path / name).model.state_dict() for name in ("x-4.pt", "alone.pt"))
    assert all(torch.equal(mine[name], yours[name]) for name in mine)
