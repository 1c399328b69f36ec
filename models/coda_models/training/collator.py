"""Rows of token ids as a trainer takes them: cut as the tokenizer cuts texts, spliced, and padded to batches."""

from collections.abc import Sequence
from copy import copy
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from coda_targets.modalities.text import IDS, MASK, TYPES

SOFT = "teacher_logits"  # of rows that a teacher has labelled


class SplicedTexts(Dataset[dict[str, Any]]):
    """Texts to distil on, spliced from pieces of the training texts, drawn anew by torch's generator every time.

    A dense adapter is sure of the texts that it was trained on, and so says little about them. It was never shown
    these, and there is no end to them: a row is a window of one to four texts each, of equal lengths, in any order.
    A spliced row keeps the label of its first piece, which is right for no more than that: use it with
    ``distillation=1``.

    Args:
        rows: of token ids, by the name of the model's input, whole texts between one leading and one closing special
            token, and ``labels``.
        tokens: of a spliced row, with both special tokens; one of short texts may be shorter.
    """

    _PIECES = (1, 2, 2, 3, 4)

    def __init__(self, rows: Sequence[dict[str, Any]], tokens: int) -> None:
        self._rows = rows
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = self._rows[index]
        pieces = self._PIECES[_below(len(self._PIECES))]
        length = (self._tokens - 2) // pieces
        sources = [first, *(self._rows[_below(len(self._rows))] for _ in range(pieces - 1))]
        body: list[int] = []
        for source in sources:
            inner = source[IDS][1:-1]
            start = _below(max(1, len(inner) - length + 1))
            body += inner[start : start + length]
        return {IDS: [first[IDS][0], *body, first[IDS][-1]], "labels": first["labels"]}


def _below(bound: int) -> int:
    return int(torch.randint(bound, ()))


class TextCollator:
    """Pad a batch of token id lists, cut where the tokenizer cuts: by default the first ``tokens`` of each are kept,
    with ``truncation_side="left"`` the last ones, and always the leading and the closing special token.

    Args:
        tokenizer: gives the padding id and the side.
        tokens: longest row, in tokens.
        drop: the share of tokens between the first and the last that a row loses, drawn anew by torch's generator
            every time it is seen; a regulariser for training, 0 elsewhere.
        splice: the share of rows whose first half is replaced by a piece of another text of the same label in the
            batch; another regulariser. Rows with token types are left whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: int, drop: float = 0.0, splice: float = 0.0) -> None:
        self._padding = int(tokenizer.pad_token_id)
        self._side = tokenizer.truncation_side
        self.tokens = tokens
        self.drop = drop
        self.splice = splice

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows -> ids, mask and, of rows that have them, types by their names [batch, tokens], labels [batch] or of
        texts with several [batch, labels], and of softly labelled ones [batch, classes] too."""
        kept = [self._kept(len(row[IDS])) for row in rows]
        labels = [row["labels"] for row in rows]
        cut = [[row[IDS][i] for i in places] for row, places in zip(rows, kept, strict=True)]
        partners = list(range(len(rows))) if TYPES in rows[0] else self._partners(labels)
        cut = [ids if i == j else _spliced(ids, cut[j]) for i, (ids, j) in enumerate(zip(cut, partners, strict=True))]
        mask = _padded([[1] * len(ids) for ids in cut], 0)
        batch = {IDS: _padded(cut, self._padding), MASK: mask, "labels": torch.tensor(labels)}
        if TYPES in rows[0]:
            batch[TYPES] = _padded([[row[TYPES][i] for i in places] for row, places in zip(rows, kept, strict=True)], 0)
        if SOFT in rows[0]:
            soft = torch.tensor([row[SOFT] for row in rows])
            batch[SOFT] = (soft + soft[partners]) / 2
        return batch

    def plain(self, tokens: int | None = None) -> "TextCollator":
        """One of this length, or another, that changes no text: for everything but training."""
        other = copy(self)
        other.tokens, other.drop, other.splice = self.tokens if tokens is None else tokens, 0.0, 0.0
        return other

    def _partners(self, labels: list[Any]) -> list[int]:
        """For each row the one that lends it a piece: another of its label, or itself."""
        partners = list(range(len(labels)))
        if self.splice <= 0:
            return partners
        for i, label in enumerate(labels):
            others = [j for j, other in enumerate(labels) if other == label and j != i]
            if others and float(torch.rand(())) < self.splice:
                partners[i] = others[_below(len(others))]
        return partners

    def _kept(self, length: int) -> list[int]:
        """Which tokens of a row stay."""
        places = list(range(length))
        if self.drop > 0 and length > 2:
            kept = (torch.rand(length - 2) >= self.drop).tolist()
            places = [0, *compress(places[1:-1], kept), length - 1]
        if len(places) <= self.tokens:
            return places
        return (
            places[:1] + places[1 - self.tokens :] if self._side == "left" else places[: self.tokens - 1] + places[-1:]
        )


def _padded(rows: list[list[int]], value: int) -> Tensor:
    """Rows of different lengths, filled up behind. [batch, tokens]"""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _spliced(ids: list[int], other: list[int]) -> list[int]:
    """The second half of a row behind a piece of another, between the special tokens of the first."""
    half = (min(len(ids), len(other)) - 2) // 2
    if half < 1:
        return ids
    start = 1 + _below(len(other) - 1 - half)
    return [ids[0], *other[start : start + half], *ids[1 + half :]]
