"""What is said of routed models beside their figures."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from coda_compile.cli import route_table
from coda_compile.statistics import Interval
from coda_compile.tune.budget import Chosen
from coda_compile.tune.held_out import Routed
from coda_compile.tune.route import Front
from coda_models.fitting.sensitivity import Choice

ROUTED = Routed("4", Path("routed.pt"), {"cosine": Interval(0.87, 0.86, 0.88)}, {}, None, 0.3, 1.0)
FRONT = Front((ROUTED,), {}, None, fitted_on=200, held_out=100, tokens=90)


def test_a_model_that_loses_much_comes_with_advice(capsys: pytest.CaptureFixture[str]):
    route_table.show(FRONT)
    assert "r=4 loses 13.0 points of cosine: --accuracy-budget 3 looks" in capsys.readouterr().out


@pytest.mark.parametrize("high", [0.97, 0.99])
def test_one_that_may_lose_little_does_not(high: float, capsys: pytest.CaptureFixture[str]):
    route_table.show(replace(FRONT, routed=(replace(ROUTED, agreement={"same label": Interval(0.95, 0.9, high)}),)))
    assert "--accuracy-budget" not in capsys.readouterr().out


def test_nor_one_whose_r_was_chosen(capsys: pytest.CaptureFixture[str]):
    chosen = Chosen(Choice((Fraction(4),), 0.3, 0.9), "cosine", 0.9, kept_aside=0, tried=1)
    route_table.show(replace(FRONT, chosen=chosen))
    assert "--accuracy-budget" not in capsys.readouterr().out
