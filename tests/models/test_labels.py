"""The loss of labels is the one that transformers' own head of the same weights computes."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.conftest import tiny_backbone
from tests.models.inputs import ragged
from torch import Tensor

from coda_models import CodaConfig, convert, from_pretrained, save_pretrained

BATCH = ragged([9, 4, 7])
WHOLE = torch.tensor([2, 0, 1])
HOT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
NUMBERS = torch.tensor([0.5, -2.0, 3.25])
MULTI = "multi_label_classification"


def both(family: str, labels: Tensor, problem: str | None, outputs: int = 3, task: str = "sequence-classification"):
    """Losses of transformers' model and of ours, and what both say of the problem afterwards."""
    backbone = tiny_backbone(family, task)
    if outputs != 3:
        backbone.num_labels = backbone.config.num_labels = outputs
        for name in ("classifier", "out_proj"):
            for module in backbone.modules():
                head = getattr(module, name, None)
                if isinstance(head, torch.nn.Linear):
                    setattr(module, name, torch.nn.Linear(head.in_features, outputs))
    ours = convert(backbone, CodaConfig(reduction=1, bottleneck=0, task=task)).eval()
    ours.hf_config = deepcopy(backbone.config)  # each settles for itself what labels mean
    backbone.config.problem_type = ours.hf_config.problem_type = problem
    losses = [model(**BATCH, labels=labels).loss for model in (backbone, ours)]
    return losses, backbone.config.problem_type, ours.hf_config.problem_type


@pytest.mark.parametrize(
    ("labels", "problem", "outputs"),
    [
        (WHOLE, None, 3),
        (WHOLE, "single_label_classification", 3),
        (HOT, None, 3),
        (HOT, MULTI, 3),
        (HOT, "regression", 3),
        (NUMBERS, None, 1),
        (NUMBERS, "regression", 1),
        (NUMBERS.unsqueeze(1), "regression", 1),
    ],
)
def test_of_texts(family: str, labels: Tensor, problem: str | None, outputs: int):
    (theirs, ours), _, _ = both(family, labels, problem, outputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert ours.requires_grad


def test_of_tokens(family: str):
    labels = torch.where(BATCH["attention_mask"].bool(), BATCH["input_ids"] % 3, -100)
    (theirs, ours), _, _ = both(family, labels, None, task="token-classification")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_several_labels_at_once_are_known_from_then_on(tmp_path: Any):
    """As transformers' configuration knows them; class indices change nothing."""
    _, theirs, ours = both("bert", HOT, None)
    assert theirs == ours == MULTI
    assert both("bert", WHOLE, None)[2] is None
    model = convert(tiny_backbone("bert"), CodaConfig())
    model(**BATCH, labels=HOT)
    save_pretrained(model, tmp_path)
    assert from_pretrained(tmp_path).model.hf_config.problem_type == MULTI


def test_labels_of_several_may_be_whole_numbers():
    (theirs, ours), _, _ = both("bert", HOT, MULTI)
    model = convert(tiny_backbone("bert"), CodaConfig(reduction=1, bottleneck=0)).eval()
    model.hf_config.problem_type = MULTI
    torch.testing.assert_close(model(**BATCH, labels=HOT.long()).loss, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
