"""tensor_digest: the same for the same values, another for any other name, type, shape or bit."""

import torch

from coda_models.digest import tensor_digest

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1, dtype=torch.int64)}


def test_order_and_layout_do_not_matter():
    strided = torch.arange(6.0).reshape(2, 3).T.contiguous().T
    assert not strided.is_contiguous()
    assert tensor_digest({"b": TENSORS["b"], "a": strided}) == tensor_digest(TENSORS)


def test_everything_else_does():
    a, b = TENSORS["a"], TENSORS["b"]
    flipped = a.clone()
    flipped[1, 2] = flipped[1, 2].nextafter(torch.tensor(9.0))
    others = [
        {"a": a},
        {"a": a, "c": b},
        {"a": flipped, "b": b},
        {"a": a.double(), "b": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.reshape(6), "b": b},
        {"a": -a, "b": b},
        {"a": a, "b": b.reshape(1)},
    ]
    assert len({tensor_digest(tensors) for tensors in [TENSORS, *others]}) == 1 + len(others)


def test_kinds_of_tensors():
    for tensor in (
        torch.zeros(0),
        torch.tensor(True),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.ones(1).requires_grad_(),
    ):
        assert len(tensor_digest({"x": tensor})) == 64
