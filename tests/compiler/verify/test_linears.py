"""Modules that compute what a target computes, for as long as it is asked."""

import pytest
import torch
from torch import nn

from coda_compile.verify.linears import computed_as


def test_modules_of_a_class_compute_as_told_and_afterwards_as_ever():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(4, 3)
    before = model(x)
    with computed_as(model, {nn.Linear: lambda module, given: given[..., :2] * module.out_features}):
        torch.testing.assert_close(model(x), torch.full((4, 2), 2.0))
    torch.testing.assert_close(model(x), before)


def test_a_failure_inside_changes_nothing_for_good():
    model, x = nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3)
    before = model(x)
    with pytest.raises(ZeroDivisionError), computed_as(model, {nn.Linear: lambda module, given: given / (1 // 0)}):
        model(x)
    torch.testing.assert_close(model(x), before)
