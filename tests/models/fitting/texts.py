"""Texts for the tiny models, batched and padded in several ways."""

from collections.abc import Iterator

import torch
from tests.conftest import tiny_coda
from torch import Tensor

from coda_models import CodaConfig, CodaModel
from coda_models.conversion import add_stand_ins

Batch = dict[str, Tensor]


def texts(count: int, seed: int = 0, longest: int = 14) -> list[Tensor]:
    """Ids of random words, 1 to ``longest`` of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(4, 100, (length,), generator=generator) for length in lengths]


def batched(rows: list[Tensor], size: int, padding: int = 0, *, left: bool = False) -> list[Batch]:
    """Rows in batches of a size, each padded to its longest and further."""
    return [_padded(rows[start : start + size], padding, left) for start in range(0, len(rows), size)]


def _padded(rows: list[Tensor], padding: int, left: bool) -> Batch:
    tokens = max(map(len, rows)) + padding
    ids, mask = torch.zeros(len(rows), tokens, dtype=torch.int64), torch.zeros(len(rows), tokens, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(tokens - len(row), tokens) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(rows: list[Tensor]) -> Iterator[Batch]:
    """Each row as a batch of its own, without padding."""
    yield from batched(rows, 1)


def dense_model(family: str = "bert", task: str = "sequence-classification", *, bottleneck: int = 4) -> CodaModel:
    """A tiny model at r = 1, in float64."""
    return tiny_coda(family, CodaConfig(reduction=1, bottleneck=bottleneck, task=task)).double()


def with_stand_ins(model: CodaModel, attention: str, *, rank: int = 8, thin: int = 0, reduction: int = 3) -> CodaModel:
    """The same model, its routers random and its stand-ins zero."""
    add_stand_ins(model, reduction=reduction, attention=attention, stand_in=rank, key_value_rank=thin)
    torch.manual_seed(0)
    for layer in model.coda_layers():
        assert layer.router is not None
        torch.nn.init.normal_(layer.router.weight, std=0.3)
    return model
