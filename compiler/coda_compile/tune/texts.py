"""Texts to fit on and others to measure with, of one file, as a model takes them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coda_compile.errors import CodaError, CompileWarning, OptionError
from coda_compile.text_files import Row, columns, length
from coda_targets.signature import Signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST, _FEWEST_MEASURED = 50, 10  # texts, the second of them held out
HELD_OUT, _MOST_HELD_OUT = 1 / 5, 400
_MOST_FOR_READOUT = 2000
_BATCH = 16


@dataclass(frozen=True)
class Texts:
    """Rows of a file, each text in one part alone.

    Attributes:
        held_out: for nothing but to measure.
        path: of the file, for messages.
    """

    others: list[Row]
    held_out: list[Row]
    path: Path


@dataclass(frozen=True)
class Split:
    """Rows of a file, each text in one part alone.

    Attributes:
        fit: for routers and stand-ins.
        readout: for the readout, which is quick: these and more, where there are.
        held_out: for nothing but to measure.
        aside: to choose among models, or among weights of one, by; none where nothing is to be chosen.
    """

    fit: list[Row]
    readout: list[Row]
    held_out: list[Row]
    aside: list[Row]


@dataclass(frozen=True)
class Batch:
    """Some texts as a model takes them.

    Attributes:
        inputs: [texts, tokens] each, by name.
        places: of the texts among all.
        words: [texts, tokens] bool, without padding and the tokenizer's own tokens.
        mask: [texts, tokens] bool, without padding.
    """

    inputs: dict[str, Tensor]
    places: list[int]
    words: Tensor
    mask: Tensor

    def lengths(self) -> list[int]:
        """Tokens of each text, with the tokenizer's own."""
        return [int(n) for n in self.mask.sum(1)]


def median_length(batches: Sequence[Batch]) -> int:
    """Tokens of the median text."""
    lengths = sorted(n for batch in batches for n in batch.lengths())
    return lengths[len(lengths) // 2]


def hold_out(rows: Sequence[Row], path: Path, seed: int) -> Texts:
    """Hold a fifth of the texts out, 400 at most, drawn by a seed. A text that comes again counts once.

    Args:
        path: of their file, for messages.

    Raises:
        CodaError: too few texts, or the same one again and again.
    """
    found = distinct(rows, path, "fitting")
    order = np.random.default_rng(seed).permutation(len(found))
    shuffled = [found[i] for i in order]
    count = held_out_of(len(found))
    return Texts(shuffled[count:], shuffled[:count], path)


def apart(rows: Sequence[Row], path: Path, held_out: Sequence[Row], held_out_path: Path) -> Texts:
    """Texts to fit on and, of a file of their own, to measure with; a text of both files is measured with alone.

    Raises:
        CodaError: too few texts in one of them, or the same one again and again.
    """
    measured = distinct(held_out, held_out_path, "measuring", _FEWEST_MEASURED)
    known = {row.text for row in measured}
    if all(row.text in known for row in rows):
        raise CodaError(f"all texts in {path} are in {held_out_path} too: measure with others than are fitted to")
    return Texts(distinct([row for row in rows if row.text not in known], path, "fitting"), measured, path)


def held_out_of(texts: int) -> int:
    """How many of so many texts are held out."""
    return min(_MOST_HELD_OUT, int(texts * HELD_OUT))


def distinct(rows: Sequence[Row], path: Path, purpose: str, fewest: int = FEWEST) -> list[Row]:
    """Rows that are not empty, the first one of each text.

    Args:
        path: of their file, for messages.
        purpose: what they are for, as in ``fitting``.

    Raises:
        CodaError: too few texts, or the same one again and again.
    """
    full = [row for row in rows if "".join(row.text).strip()]
    if len(full) < len(rows):
        what = f"{len(rows) - len(full)} of {len(rows)} texts in {path} are empty"
        if not full:
            raise CodaError(f"{what}: give texts like those that the model will see")
        warnings.warn(f"{what} and are left out", CompileWarning, stacklevel=2)
    found = list({row.text: row for row in reversed(full)}.values())[::-1]
    if len(full) >= fewest and len(found) == 1:
        raise CodaError(f"the {len(full)} texts in {path} are all the same: give texts like those of the model's task")
    if len(found) < fewest:
        have = f"{len(found)} texts" if len(found) == len(full) else f"{len(found)} different texts"
        raise CodaError(f"{path} has {have}, and {purpose} takes {fewest} or more, better some hundred: give more")
    return found


def split(texts: Texts, *, fit_texts: int, aside: float = 0.0) -> Split:
    """Part the texts that are not held out.

    Args:
        fit_texts: to fit on, at most.
        aside: share of all texts to keep aside; 400 at most.
    """
    count = min(_MOST_HELD_OUT, int((len(texts.others) + len(texts.held_out)) * aside))
    kept, rest = texts.others[:count], texts.others[count:]
    return Split(rest[:fit_texts], rest[: max(fit_texts, _MOST_FOR_READOUT)], texts.held_out, kept)


def batches(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", signature: Signature) -> list[Batch]:
    """Texts in batches of similar lengths, cut and padded as the model was trained to.

    Raises:
        OptionError: a tokenizer without a padding token, or one that makes no inputs of the model.
    """
    if tokenizer.pad_token_id is None:
        raise OptionError("the tokenizer has no padding token: set its pad_token and save it, or give a {tokenizer}")
    valid = signature.role("mask")
    assert valid is not None  # every encoder of text has one
    texts = [row.text for row in rows]
    order = sorted(range(len(texts)), key=lambda i: length(texts[i]))
    made = []
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        encoded = tokenizer(
            **columns([texts[i] for i in places]),
            truncation=True,
            max_length=signature.max_length,
            padding=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
            **{f"return_{valid.name}": True},  # whether or not it is one of the tokenizer's own inputs
        )
        inputs = {name: encoded[name] for name in signature.names if name in encoded}
        mask = encoded[valid.name].bool()
        made.append(Batch(inputs, places, mask & (encoded["special_tokens_mask"] == 0), mask))
    return made


def check_known(made: Sequence[Batch], tokenizer: "PreTrainedTokenizerBase", signature: Signature, path: Path) -> None:
    """Refuse texts that are mostly foreign to the tokenizer, whatever the model would make of them.

    Raises:
        CodaError: half of the tokens or more are unknown, or beyond the model's vocabulary.
    """
    name = signature.lead.name
    tokens = torch.cat([batch.inputs[name][batch.words] for batch in made])
    beyond = int((tokens >= signature.lead.size).sum()) if signature.lead.size else 0
    if beyond:
        raise OptionError(
            "the tokenizer gives {beyond} tokens of the texts in {path} ids that the model does not know: give the "
            "model's own {tokenizer}",
            beyond=beyond,
            path=path,
        )
    unknown = 0 if tokenizer.unk_token_id is None else int((tokens == tokenizer.unk_token_id).sum())
    if 2 * unknown >= len(tokens):
        share = f"{unknown / len(tokens):.0%} of the tokens" if len(tokens) else "all tokens"
        raise CodaError(
            f"{share} of the texts in {path} are unknown to the model's tokenizer: give texts in the language and "
            "script that it was trained on"
        )


def check_told_apart(made: Sequence[Batch], signature: Signature, path: Path) -> None:
    """Refuse texts that are one to the model, as those are that differ in spaces, or behind its last token.

    Raises:
        CodaError: too few are different.
    """
    name = signature.lead.name
    rows = [ids[mask] for batch in made for ids, mask in zip(batch.inputs[name], batch.mask, strict=True)]
    distinct = len({tuple(row.tolist()) for row in rows})
    if distinct < FEWEST:
        raise CodaError(
            f"only {distinct} of the {len(rows)} texts in {path} differ to the model's tokenizer, and fitting takes "
            f"{FEWEST} or more: give other texts"
        )
