"""Texts are split without an overlap, cut as the model cuts them, and refused where nothing can be made of them."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile.errors import CodaError, CompileWarning, OptionError
from coda_compile.text_files import Row
from coda_compile.tune.texts import FEWEST, Split, apart, batches, check_known, check_told_apart, hold_out, split

FILE = Path("texts.csv")
SIGNATURE = tiny_coda().signature


def parted(rows: list[Row], path: Path, *, fit_texts: int, seed: int, aside: float = 0.0) -> Split:
    return split(hold_out(rows, path, seed), fit_texts=fit_texts, aside=aside)


def rows(*texts: str) -> list[Row]:
    return [Row(text, str(i), f"line {i}") for i, text in enumerate(texts)]


@settings(deadline=None, max_examples=20)
@given(count=st.integers(FEWEST, 2600), fit=st.integers(1, 3000), seed=st.integers(0, 3))
def test_no_text_is_in_two_parts(count: int, fit: int, seed: int):
    parts = parted(rows(*(f"t{i}" for i in range(count))), FILE, fit_texts=fit, seed=seed)
    held_out = {row.text for row in parts.held_out}
    assert len(held_out) == len(parts.held_out) == min(400, count // 5)
    assert not held_out & {row.text for row in parts.readout}
    assert parts.fit == parts.readout[:fit]
    assert len(parts.readout) == min(max(2000, fit), count - len(held_out))


def test_as_many_are_kept_aside_as_are_held_out():
    some = rows(*(f"t{i}" for i in range(150)))
    parts = parted(some, FILE, fit_texts=400, seed=0, aside=0.2)
    assert parted(some, FILE, fit_texts=400, seed=0).held_out == parts.held_out
    apart = [{row.text for row in part} for part in (parts.held_out, parts.aside, parts.readout)]
    assert [len(part) for part in apart] == [30, 30, 90]
    assert len(set.union(*apart)) == 150


def test_texts_of_a_file_of_their_own_are_measured_with_and_not_fitted_to():
    own, others = rows(*random_texts(60)), rows(*random_texts(60, seed=1))
    texts = apart([*own, *others[:5]], Path("a"), others, Path("b"))
    assert (texts.others, texts.held_out, texts.path) == (own, others, Path("a"))
    with pytest.raises(CodaError, match="b has 9 texts, and measuring takes 10 or more"):
        apart(own, Path("a"), others[:9], Path("b"))
    with pytest.raises(CodaError, match="^all texts in a are in b too: measure with others"):
        apart(others, Path("a"), others, Path("b"))


def test_the_seed_draws():
    some = rows(*(f"t{i}" for i in range(100)))
    first, again, other = (parted(some, FILE, fit_texts=9, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.held_out != other.held_out


def test_a_text_that_comes_again_counts_once_with_its_first_label():
    parts = parted(rows(*(f"t{i % 60}" for i in range(200))), FILE, fit_texts=400, seed=0)
    kept = [*parts.readout, *parts.held_out]
    assert sorted(int(row.label) for row in kept) == list(range(60))


def test_empty_texts_are_left_out_and_told_of():
    with pytest.warns(CompileWarning, match=r"3 of 63 texts in texts\.csv are empty and are left out"):
        parts = parted(rows("", *(f"t{i}" for i in range(60)), "  ", "\n"), FILE, fit_texts=400, seed=0)
    assert len(parts.readout) + len(parts.held_out) == 60


def test_a_pair_is_empty_where_both_are():
    pairs = [Row(("", f"t{i}"), "", "") for i in range(FEWEST)]
    assert parted(pairs, FILE, fit_texts=400, seed=0).held_out


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["", " "], r"2 of 2 texts in texts\.csv are empty: give texts like those that the model will see"),
        (["a", "b"], r"texts\.csv has 2 texts, and fitting takes 50 or more, better some hundred: give more"),
        (["a", "b"] * 40, r"texts\.csv has 2 different texts, and fitting takes 50 or more"),
        (["a"] * 70, r"the 70 texts in texts\.csv are all the same: give texts like those of the model's task"),
        ([], r"texts\.csv has 0 texts"),
    ],
)
def test_too_few(texts: list[str], message: str):
    with pytest.raises(CodaError, match=message):
        parted(rows(*texts), FILE, fit_texts=400, seed=0)


def test_batches_are_what_the_tokenizer_makes_of_each_text(tokenizer: PreTrainedTokenizerFast):
    texts = [*random_texts(30), "w1 " * 200]
    made = batches(rows(*texts), tokenizer, SIGNATURE)
    assert sorted(place for batch in made for place in batch.places) == list(range(31))
    for batch in made:
        for i, place in enumerate(batch.places):
            alone = tokenizer(texts[place], truncation=True, max_length=SIGNATURE.max_length)["input_ids"]
            assert batch.inputs["input_ids"][i][batch.mask[i]].tolist() == alone
            assert batch.inputs["input_ids"][i][batch.words[i]].tolist() == alone[1:-1]
            assert batch.lengths()[i] == len(alone)
        assert set(batch.inputs) <= set(SIGNATURE.names)


def test_a_script_that_the_tokenizer_does_not_know(tokenizer: PreTrainedTokenizerFast):
    foreign = batches(rows("добрый день w1", "ещё один"), tokenizer, SIGNATURE)
    with pytest.raises(CodaError, match=r"80% of the tokens of the texts in texts\.csv are unknown to the model's"):
        check_known(foreign, tokenizer, SIGNATURE, FILE)
    some = batches(rows("добрый w1 w2", "good film"), tokenizer, SIGNATURE)
    check_known(some, tokenizer, SIGNATURE, FILE)


def test_ids_beyond_the_models_table(tokenizer: PreTrainedTokenizerFast):
    made = batches(rows("w1 w2", "good film"), tokenizer, SIGNATURE)
    made[0].inputs["input_ids"][made[0].words] += torch.tensor([0, 0, 0, 100])
    with pytest.raises(
        OptionError, match=r"gives 1 tokens of the texts in texts\.csv ids that the model does not know"
    ):
        check_known(made, tokenizer, SIGNATURE, FILE)


def test_texts_that_are_one_to_the_model(tokenizer: PreTrainedTokenizerFast):
    """They differ in spaces, or behind the last token that it takes."""
    alike = [f"good{' ' * i}film" for i in range(1, 40)] + [f"{'w1 ' * SIGNATURE.max_length}w{i}" for i in range(40)]
    made = batches(rows(*alike, *random_texts(47)), tokenizer, SIGNATURE)
    message = r"only 49 of the 126 texts in texts\.csv differ to the model's tokenizer, and fitting takes 50 or more"
    with pytest.raises(CodaError, match=message):
        check_told_apart(made, SIGNATURE, FILE)
    check_told_apart(batches(rows(*alike, *random_texts(48)), tokenizer, SIGNATURE), SIGNATURE, FILE)


def test_a_tokenizer_that_cannot_pad(tokenizer: PreTrainedTokenizerFast):
    bare = deepcopy(tokenizer)
    bare.pad_token = None
    with pytest.raises(OptionError, match="the tokenizer has no padding token: set its pad_token"):
        batches(rows("a", "b"), bare, SIGNATURE)
