"""r within a budget: the best that fits a share, the cheapest that keeps agreement, and what is told of either."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_backbone
from transformers import PreTrainedTokenizerFast

from coda_compile import RouteOptions, route
from coda_compile.errors import CodaError, OptionError
from coda_compile.statistics import Interval
from coda_compile.tune.budget import within_points
from coda_compile.tune.fits import Fits
from coda_compile.tune.held_out import HeldOut
from coda_compile.tune.route import Front
from coda_compile.tune.route_options import Reductions
from coda_models import CodaModel, load
from coda_models.errors import ConfigError
from coda_models.fitting.sensitivity import Sensitivity

TEXTS = random_texts(80)
SMALL: dict[str, Any] = {"stand_in": 4, "key_value_rank": 4}
LABELLED = "sequence-classification"


@pytest.fixture
def routed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Front]:
    """Routes a Hugging Face folder of a task, to routed.pt."""

    def make(task: str = LABELLED, problem: str | None = None, **asked: Any) -> Front:
        backbone = tiny_backbone("bert", task)
        backbone.config.problem_type = problem
        backbone.save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
        (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
        budgets = {name: asked.pop(name) for name in ("budget", "accuracy_budget") if name in asked}
        asked = {"output": tmp_path / "routed.pt", **asked}
        return route(tmp_path / "m", tmp_path / "texts.txt", RouteOptions(**SMALL, **budgets), **asked)

    return make


KINDS = [
    (LABELLED, None, "same label"),
    (LABELLED, "multi_label_classification", "same labels"),
    (LABELLED, "regression", "R²"),
    ("token-classification", None, "same tags"),
    ("feature-extraction", None, "cosine"),
]


@pytest.mark.parametrize(("task", "problem", "figure"), KINDS)
def test_a_share_of_the_multiply_adds(
    task: str, problem: str | None, figure: str, routed: Callable[..., Front], tmp_path: Path
):
    front = routed(task, problem, budget=0.6)
    chosen, (one,) = front.chosen, front.routed
    assert chosen is not None
    assert chosen.choice.share <= 0.6
    assert one.share == pytest.approx(chosen.choice.share, abs=0.05)  # of other texts
    assert (chosen.figure, chosen.kept_aside, chosen.tried) == (figure, 0, 0)
    assert chosen.figure in one.agreement
    assert 0 <= chosen.expected <= 1
    assert load(tmp_path / "routed.pt").model.coda_config.reduction == chosen.choice.reductions
    assert one.reduction == ",".join(map(str, chosen.choice.reductions))
    assert (front.fitted_on, front.held_out) == (64, 16)


@pytest.mark.parametrize(("task", "problem", "figure"), KINDS)
def test_points_of_agreement(task: str, problem: str | None, figure: str, routed: Callable[..., Front], tmp_path: Path):
    front = routed(task, problem, accuracy_budget=99.0)
    chosen, (one,) = front.chosen, front.routed
    assert chosen is not None
    assert (chosen.figure, chosen.kept_aside) == (figure, 16)
    assert chosen.expected >= 0.01
    assert chosen.tried >= 1
    assert load(one.path).model.coda_config.reduction == chosen.choice.reductions
    assert (front.fitted_on, front.held_out) == (48, 16)


def test_the_model_that_was_tried_is_the_one_that_is_saved(routed: Callable[..., Front]):
    """No other is fitted in the end."""
    stages: list[str] = []
    front = routed(accuracy_budget=99.0, stage=lambda name: nullcontext(stages.append(name)))
    assert front.chosen is not None
    assert stages[:4] == ["load", "read", "routers", "layers"]
    assert stages[-2:] == ["measure", "save"]
    assert [name.split("=")[0] for name in stages[4:-2]] == ["try r"] * front.chosen.tried


def test_a_smaller_share_is_a_larger_r(routed: Callable[..., Front]):
    shares = []
    for budget in (0.45, 0.6, 0.9):
        front = routed(budget=budget)
        assert front.chosen is not None
        shares.append(front.chosen.choice.share)
    assert shares[0] < shares[1] < shares[2]


R = [Fraction(r) for r in (1, 2, 4, 8, 16)]


class Made:
    """Fits of three equal layers whose r alone decides what a model keeps; counts the models."""

    def __init__(self) -> None:
        losses = [{r: (float(r) - 1) * (1 + i / 10) for r in R} for i in range(3)]
        self.sensed = Sensitivity(losses, losses, [{r: 1600 / float(r) for r in R}] * 3)
        self.made: list[tuple[Fraction, ...]] = []

    def sensitivity(self) -> Sensitivity:
        return self.sensed

    def routed(self, reduction: Reductions) -> CodaModel:
        self.made.append(cast(Any, reduction))
        return cast(CodaModel, SimpleNamespace(share=sum(1 / float(r) for r in self.made[-1]) / 3))


class Aside:
    """Texts of which a model keeps as many as its share of the multiply-adds says."""

    figure = "same label"

    def __init__(self, keeps: Callable[[float], float]) -> None:
        self._keeps = keeps

    def __len__(self) -> int:
        return 200

    def agreement(self, routed: CodaModel) -> dict[str, Interval]:
        kept = self._keeps(cast(Any, routed).share)
        return {self.figure: Interval(kept, kept, kept)}


def searched(keeps: Callable[[float], float], points: float) -> tuple[Any, Made, Any]:
    fits = Made()
    chosen, made = within_points(cast(Fits, fits), cast(HeldOut, Aside(keeps)), points, nullcontext)
    return chosen, fits, made


@pytest.mark.parametrize("edge", [0.05, 0.2, 0.28, 0.34, 0.45, 0.55, 0.65])
def test_the_cheapest_that_keeps_within_the_points_is_found_by_bisection(edge: float):
    chosen, fits, made = searched(lambda share: 0.99 if share >= edge else 0.8, points=1.0)
    shares = {share: fits.sensed.choose(share).share for share in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)}
    assert chosen.choice.share == pytest.approx(min(share for share in shares.values() if share >= edge))
    assert made.share == pytest.approx(chosen.choice.share)
    assert chosen.expected == 0.99
    assert chosen.tried == len(fits.made) <= 4
    assert len(set(fits.made)) == len(fits.made)


def test_points_that_are_lost_exactly_are_within_the_budget():
    assert searched(lambda share: 1 - 3 / 100, points=3.0)[0].expected == 0.97


def test_what_was_the_best_is_told_where_none_keeps_within_the_points():
    with pytest.raises(
        OptionError,
        match=r"no r of 2 tried keeps within 1 points: the best, [\d,]+ by layer, loses 4\.0 at 0\.\d\d of the "
        r"multiply-adds \(same label on 200 texts kept aside\): allow more by accuracy_budget, or give more texts",
    ):
        searched(lambda share: 0.96 if share > 0.6 else 0.9, points=1.0)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (
            {"budget": 0.05},
            ConfigError,
            r"no r of 1, 2, 4, 8, 16 brings the layers down to 0\.05 of their multiply-adds",
        ),
        (
            {"budget": 0.0},
            OptionError,
            r"budget 0\.0 is no share of the dense model's multiply-adds: give e\.g\. 0\.25",
        ),
        ({"budget": 1.0}, OptionError, r"budget 1\.0 is no share"),
        ({"accuracy_budget": -1.0}, OptionError, r"accuracy_budget -1\.0 is not from 0 to 100 points"),
        ({"accuracy_budget": 0.0}, OptionError, r"no r of \d tried keeps within 0 points: the best"),
        ({"budget": 0.5, "accuracy_budget": 1.0}, OptionError, "reduction, budget and accuracy_budget each say how"),
        ({"budget": 0.5, "reductions": [2]}, OptionError, "each say how much is routed: give one of them"),
        (
            {"budget": 0.5, "output": "x-{r}.pt"},
            OptionError,
            r"r is not known before it is chosen: name output without",
        ),
    ],
)
def test_refused_budgets_leave_nothing_behind(
    asked: dict[str, Any], error: type[CodaError], message: str, routed: Callable[..., Front], tmp_path: Path
):
    if "output" in asked:
        asked = {**asked, "output": tmp_path / asked["output"]}
    problem = "regression" if asked.get("accuracy_budget") == 0 else None  # numbers are never quite the same
    with pytest.raises(error, match=message):
        routed(problem=problem, **asked)
    assert not list(tmp_path.glob("*.pt"))


def test_labels_change_nothing(routed: Callable[..., Front], tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """What is chosen and fitted is the same with any labels."""
    routed(budget=0.6)
    rows = [{"text": text, "kind": f"LABEL_{i % 3}"} for i, text in enumerate(TEXTS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = RouteOptions(**SMALL, label_column="kind", budget=0.6)
    route(tmp_path / "m", tmp_path / "rows.jsonl", options, output=tmp_path / "labelled.pt")
    mine, yours = (load(tmp_path / name).model.state_dict() for name in ("routed.pt", "labelled.pt"))
    assert all(torch.equal(mine[name], yours[name]) for name in mine)
