"""Steps behind the fit: told before and after, the same to the bit when a command is cut off, and nobody else's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_backbone
from transformers import PreTrainedTokenizerFast

from coda_compile import RouteOptions, route
from coda_compile.errors import CompileWarning, OptionError
from coda_compile.tune import fits
from coda_compile.tune.route import Front
from coda_models import CodaModel, load
from coda_models.digest import tensor_digest
from coda_models.errors import CheckpointError
from coda_models.training import distill
from coda_models.training.distill import Distilled

TEXTS = random_texts(80)
SMALL: dict[str, Any] = {"stand_in": 8, "key_value_rank": 8, "steps": 4}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    return folder_of("sequence-classification", tmp_path, tokenizer)


def folder_of(task: str, where: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny_backbone("bert", task).save_pretrained(where / "m")
    tokenizer.save_pretrained(where / "m")
    return where / "m"


def stepped(model: Path, texts: Path, output: Path, **options: Any) -> Front:
    asked = {name: options.pop(name) for name in ("reductions", "progress", "stage") if name in options}
    return route(model, texts, RouteOptions(**{**SMALL, **options}), output=output, **{"reductions": [2], **asked})


def digest(path: Path) -> str:
    return tensor_digest(load(path).model.state_dict())


def cut_off(what: str, at: int, skip: int = 0) -> Callable[[str, int, int], None]:
    """Ctrl-C where something has been done ``at`` times, after as many times as are skipped."""
    left = skip

    def progress(now: str, done: int, steps: int) -> None:
        nonlocal left
        if (now, done) == (what, at):
            if not left:
                raise KeyboardInterrupt
            left -= 1

    return progress


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "feature-extraction"])
def test_figures_are_those_of_the_model_behind_the_steps(
    task: str, texts: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Steps that spoil a model: its figures are the worse ones, and those before are told beside them."""

    def spoil(model: CodaModel, *_: Any, **__: Any) -> Distilled:
        with torch.no_grad():
            if model.head is not None:  # the likeliest label becomes the least likely
                [*_, last] = (one for one in model.head.modules() if isinstance(one, torch.nn.Linear))
                last.weight.neg_()
                last.bias.neg_()
                return Distilled(4, 0.5, 0.25)
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        return Distilled(4, 0.5, 0.25)

    monkeypatch.setattr(distill, "distill", spoil)
    front = stepped(folder_of(task, tmp_path, tokenizer), texts, tmp_path / "routed.pt")
    (one,) = front.routed
    assert one.fitted is not None
    assert one.fitted.keys() == one.agreement.keys()
    assert all(one.agreement[name].middle < figure.middle for name, figure in one.fitted.items())
    assert (front.held_out, front.fitted_on) == (16, 56)  # eight are kept aside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "routed.pt", "texts.txt"]


def test_without_steps_nothing_is_kept_aside(model: Path, texts: Path, tmp_path: Path):
    front = stepped(model, texts, tmp_path / "routed.pt", steps=0)
    assert front.routed[0].fitted is None
    assert front.fitted_on == 64


@pytest.mark.parametrize(
    ("what", "at", "skip"),
    [("readout", 4, 0), ("steps", 1, 0), ("steps", 3, 0), ("stand-ins", 1, 1), ("steps", 2, 1)],
)
def test_a_command_that_was_cut_off_ends_the_same(
    what: str, at: int, skip: int, model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While it fits, while it steps, and while it is at another r; what was fitted by then is not fitted again."""
    several: dict[str, Any] = {"reductions": [2, 3]}
    stepped(model, texts, tmp_path / "whole-{r}.pt", **several)
    nothing = what == "readout"
    said = "^$" if nothing else r"routed-_r_\.pt\.steps keeps what is done: give the same command again"
    with pytest.raises(KeyboardInterrupt, match=said):
        stepped(model, texts, tmp_path / "routed-{r}.pt", progress=cut_off(what, at, skip), **several)
    assert list(tmp_path.glob(".*")) == ([] if nothing else [tmp_path / ".routed-_r_.pt.steps"])
    fitted: list[Any] = []
    honest = fits.route_model

    def counted(*given: Any, **options: Any) -> Any:
        fitted.append(options["reduction"])
        return honest(*given, **options)

    monkeypatch.setattr(fits, "route_model", counted)
    stepped(model, texts, tmp_path / "routed-{r}.pt", **several)
    assert fitted == {("readout", 0): [2, 3], ("steps", 0): [3], ("stand-ins", 1): [3], ("steps", 1): []}[what, skip]
    for r in (2, 3):
        assert digest(tmp_path / f"routed-{r}.pt") == digest(tmp_path / f"whole-{r}.pt")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("other", [{"steps": 5}, {"stand_in": 7}, {"seed": 1}, {"fit_texts": 20}])
def test_another_command_is_refused_and_loses_nothing(other: dict[str, Any], model: Path, texts: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        stepped(model, texts, tmp_path / "routed.pt", progress=cut_off("steps", 3))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="other options, texts or weights left when it was interrupted"):
        stepped(model, texts, tmp_path / "routed.pt", **other)
    texts.write_text("\n".join(TEXTS[1:]) + "\n")
    with pytest.raises(CheckpointError, match="other options, texts or weights left when it was interrupted"):
        stepped(model, texts, tmp_path / "routed.pt")
    texts.write_bytes(before[texts])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_model_in_the_folder_is_refused(model: Path, texts: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        stepped(model, texts, tmp_path / "routed.pt", progress=cut_off("steps", 3))
    (tmp_path / ".routed.pt.steps" / "fitted-2.pt").write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match=r"fitted-2\.pt .+; remove .+\.routed\.pt\.steps to begin anew$"):
        stepped(model, texts, tmp_path / "routed.pt")


def test_a_loss_that_is_nan_is_told_of(model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distill, "distill", lambda *given, **options: Distilled(2, 0.5, 0.25, diverged=3))
    with pytest.warns(CompileWarning, match=r"^step 3 of 4 gave a loss that is NaN or infinite: the model has the wei"):
        stepped(model, texts, tmp_path / "routed.pt")
    assert (tmp_path / "routed.pt").is_file()


def test_fewer_steps_than_none_are_refused(model: Path, texts: Path, tmp_path: Path):
    with pytest.raises(OptionError, match="^steps -1 are fewer than none: give 0 or more$"):
        stepped(model, texts, tmp_path / "routed.pt", steps=-1)
