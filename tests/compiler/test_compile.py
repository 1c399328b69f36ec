"""compile() as a call: what it leaves as it was, its stages, and what it refuses of targets and r."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.errors import CodaError, CompileError, CompileWarning
from coda_models import CodaConfig, convert
from coda_targets import Bundle, TargetError


def test_model_and_tokenizer_of_the_caller_stay_as_they_are(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=4)).train()
    before = (tokenizer.model_max_length, tokenizer.backend_tokenizer.to_str())
    bundle = compile(model, CompileOptions(tokenizer=tokenizer, reduction=1), output=tmp_path / "dense")
    assert bundle.manifest.coda_config["reduction"] == "1"
    assert model.training
    assert model.coda_config.reduction == 4
    assert [layer.reduction for layer in model.coda_layers()] == [4, 4]
    assert (tokenizer.model_max_length, tokenizer.backend_tokenizer.to_str()) == before


def test_stages_come_in_order(tmp_path: Path):
    from contextlib import contextmanager

    seen: list[str] = []

    @contextmanager
    def stage(name: str) -> Any:
        seen.append(name)
        yield
        seen.append(f"{name} ended")

    compile(
        tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(target="null"), output=tmp_path / "b", stage=stage
    )
    names = ["load", "export", "passes", "verify", "bundle"]
    assert seen == [text for name in names for text in (name, f"{name} ended")]
    bundle = Bundle(tmp_path / "b")
    assert bundle.variant.target == "null"
    with pytest.raises(TargetError, match=r"target 'null' cannot run here"):
        bundle.run({"input_ids": np.ones((1, 2), np.int64)})


@pytest.mark.parametrize(
    ("reduction", "message"),
    [
        (0, "reduction 0 is below 1"),
        ("1/2", "reduction 1/2 is below 1"),
        ("four", "reduction 'four' is no ratio"),
        ([2, 2, 2], "reduction lists 3 layers but the model has 2"),
        (2.5, r"reduction 2\.5 is no ratio"),
    ],
)
def test_bad_reduction(tmp_path: Path, reduction: Any, message: str):
    with pytest.raises(CodaError, match=message):
        compile(tiny_coda(), CompileOptions(reduction=reduction), output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reduction", [2, "7/2", [1, 2]])
def test_model_without_routers_runs_dense_only(tmp_path: Path, reduction: Any):
    model = convert(tiny_backbone("bert"), CodaConfig(reduction=1, bottleneck=0))
    with pytest.raises(CompileError, match=r"this model has no routers, so it runs at reduction 1 only"):
        compile(model, CompileOptions(reduction=reduction), output=tmp_path / "b")


def test_stand_ins_are_for_the_r_that_they_were_fitted_at(tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2, stand_in=4))
    compile(model, CompileOptions(reduction=2), output=tmp_path / "same")  # warnings are errors
    with pytest.warns(CompileWarning, match=r"were fitted at r = 2, and at another r answers are off"):
        compile(model, CompileOptions(reduction=4), output=tmp_path / "other")


@pytest.mark.parametrize("reduction", ["1", [1, 1], "2/2"])
def test_model_without_routers_may_be_told_so(tmp_path: Path, reduction: Any):
    model = convert(tiny_backbone("bert"), CodaConfig(reduction=1, bottleneck=0))
    bundle = compile(model, CompileOptions(reduction=reduction), output=tmp_path / "b")
    assert [layer.reduction for layer in bundle.manifest.layers] == ["1", "1"]
