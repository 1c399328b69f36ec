"""What rows become: cut on the tokenizer's side, spliced, and padded."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from coda_models.training.collator import SplicedTexts, TextCollator


@pytest.mark.parametrize(("side", "kept"), [("left", [12, 13]), ("right", [10, 11])])
def test_collator_keeps_special_tokens_and_cuts_where_the_tokenizer_does(
    side: str, kept: list[int], tokenizer: PreTrainedTokenizerFast
):
    collator = TextCollator(sided(tokenizer, side), 4)
    rows = [{"input_ids": [2, 10, 11, 12, 13, 3], "labels": 1}, {"input_ids": [2, 9, 3], "labels": 0}]
    batch = collator(rows)
    assert batch["input_ids"].tolist() == [[2, *kept, 3], [2, 9, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collator_cuts_as_the_tokenizer_itself_does(side: str, tokenizer: PreTrainedTokenizerFast):
    words, own = " ".join(f"w{i}" for i in range(30)), sided(tokenizer, side)
    batch = TextCollator(own, 12)([{"input_ids": own(words)["input_ids"], "labels": 0}])
    assert batch["input_ids"][0].tolist() == own(words, truncation=True, max_length=12)["input_ids"]


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [([1, 0], torch.int64), ([0.5, -2.0], torch.float32), ([[1.0, 0.0], [1.0, 1.0]], torch.float32)],
)
def test_labels_are_classes_or_numbers_or_several(
    labels: list[Any], dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast
):
    rows = [{"input_ids": [2, 9, 3], "labels": label} for label in labels]
    batch = TextCollator(tokenizer, 8)(rows)
    assert (batch["labels"].dtype, batch["labels"].tolist()) == (dtype, labels)


def test_types_of_a_pair_are_cut_and_padded_with_it(tokenizer: PreTrainedTokenizerFast):
    torch.manual_seed(0)
    long = {"input_ids": [2, *range(10, 20), 3], "token_type_ids": [0, *[0] * 5, *[1] * 5, 1], "labels": 1}
    short = {"input_ids": [2, 9, 3], "token_type_ids": [0, 0, 1], "labels": 1}
    batch = TextCollator(tokenizer, 12, drop=0.4, splice=1.0)([long, short])
    ids, types = batch["input_ids"].tolist(), batch["token_type_ids"].tolist()
    assert 4 < len(ids[0]) < 12  # some were dropped
    assert types[0] == [int(token >= 15 or token == 3) for token in ids[0]]  # and nothing is spliced
    assert (types[1][:1], ids[1][-1], types[1][-1]) == ([0], 0, 0)


def sided(tokenizer: PreTrainedTokenizerFast, side: str) -> PreTrainedTokenizerFast:
    """A copy that cuts texts on a side."""
    own = copy.deepcopy(tokenizer)
    own.truncation_side = side
    return own


def test_spliced_texts_are_windows_of_the_texts_between_special_tokens():
    """Text t has the words 100t, 100t + 1, …: every piece is a run of one text, all of a row of one length."""
    torch.manual_seed(0)
    rows = [{"input_ids": [2, *range(100 * t, 100 * t + 60), 3], "labels": t % 2} for t in range(1, 6)]
    spliced = SplicedTexts(rows, 26)
    assert len(spliced) == 5
    counts = set()
    for index in list(range(5)) * 12:
        row = spliced[index]
        assert row["labels"] == rows[index]["labels"]
        first, *words, last = row["input_ids"]
        assert (first, last) == (2, 3)
        length = next((n for n in (24, 12, 8, 6) if all(b == a + 1 for a, b in pairwise(words[:n]))), 0)
        assert len(words) == 24
        pieces = [words[i : i + length] for i in range(0, 24, length)]
        assert all(piece == list(range(piece[0], piece[0] + length)) for piece in pieces)
        assert pieces[0][0] // 100 == index + 1
        counts.add(len(pieces))
    assert counts == {1, 2, 3, 4}


def test_spliced_texts_are_drawn_anew_and_by_the_seed():
    rows = [{"input_ids": [2, *range(10, 90), 3], "labels": 0}]
    spliced = SplicedTexts(rows, 20)
    torch.manual_seed(1)
    seen = [spliced[0]["input_ids"] for _ in range(3)]
    torch.manual_seed(1)
    assert seen == [spliced[0]["input_ids"] for _ in range(3)]
    assert seen[0] != seen[1]


def test_texts_shorter_than_their_piece_are_taken_whole():
    spliced = SplicedTexts([{"input_ids": [2, 7, 8, 3], "labels": 1}], 20)
    seen = [spliced[0]["input_ids"] for _ in range(40)]
    assert {tuple(ids) for ids in seen} == {(2, *[7, 8] * pieces, 3) for pieces in (1, 2, 3, 4)}


def test_dropped_tokens_leave_the_ends_and_the_order(tokenizer: PreTrainedTokenizerFast):
    torch.manual_seed(0)
    row = [2, *range(10, 90), 3]
    seen = [TextCollator(tokenizer, 100, drop=0.25)([{"input_ids": row, "labels": 1}])["input_ids"][0] for _ in "ab"]
    for ids in seen:
        assert ids[0] == 2
        assert ids[-1] == 3
        assert ids[1:-1].tolist() == sorted(ids[1:-1].tolist())
        assert 40 < len(ids) < 82
    assert seen[0].tolist() != seen[1].tolist()


def test_a_window_is_filled_after_dropping(tokenizer: PreTrainedTokenizerFast):
    batch = TextCollator(tokenizer, 32, drop=0.25)([{"input_ids": [2, *range(10, 90), 3], "labels": 1}])
    assert batch["input_ids"].shape == (1, 32)


def test_spliced_rows_end_as_they_did_behind_a_piece_of_one_of_their_label(tokenizer: PreTrainedTokenizerFast):
    """Text t has the words 100t, 100t + 1, …: a piece is a run of one text, and lengths stay."""
    torch.manual_seed(0)
    texts = [{"input_ids": [2, *range(100 * t, 100 * t + 40), 3], "labels": t % 2} for t in range(1, 7)]
    seen = set()
    for t, ids in enumerate(TextCollator(tokenizer, 42, splice=1.0)(texts)["input_ids"].tolist(), start=1):
        other = ids[1] // 100
        assert other != t
        assert other % 2 == t % 2
        assert ids == [2, *range(ids[1], ids[1] + 20), *range(100 * t + 20, 100 * t + 40), 3]
        seen.add(ids[1] % 100)
    assert len(seen) > 1


def test_a_row_without_a_partner_of_its_label_or_too_short_stays_whole(tokenizer: PreTrainedTokenizerFast):
    texts = [{"input_ids": [2, *words, 3], "labels": y} for words, y in (((10, 11, 12), 0), ((13, 14), 1), ((15,), 1))]
    batch = TextCollator(tokenizer, 8, splice=1.0)(texts)
    assert batch["input_ids"].tolist() == [[2, 10, 11, 12, 3], [2, 13, 14, 3, 0], [2, 15, 3, 0, 0]]


def test_soft_labels_of_spliced_rows_are_the_mean_of_both(tokenizer: PreTrainedTokenizerFast):
    texts = [
        {"input_ids": [2, 10, 11, 3], "labels": y, "teacher_logits": [float(t), -float(t)]}
        for t, y in enumerate((0, 1, 0))
    ]
    batch = TextCollator(tokenizer, 8, splice=1.0)(texts)
    assert batch["teacher_logits"].tolist() == [[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]]
    assert TextCollator(tokenizer, 8)(texts)["teacher_logits"].tolist() == [[0.0, 0.0], [1.0, -1.0], [2.0, -2.0]]
