"""Inputs that a compiled model is verified on: random ones in shapes that the export never saw."""

from dataclasses import dataclass

from coda_targets.signature import Arrays, Signature

_LONG = 2048  # attention holds numbers for each pair of tokens: three sequences of 8192 would take 10 GB in 12 heads


@dataclass(frozen=True)
class Case:
    """One input: a name for people, and arrays by name."""

    name: str
    inputs: Arrays


def make_case(
    signature: Signature, batch: int, length: int, *, ragged: bool, seed: int = 0, padded_left: bool = False
) -> Case:
    """Random inputs, see ``Signature.random``."""
    kind = "padded on the left" if padded_left else "ragged" if ragged else "full"
    arrays = signature.random(batch, length, ragged=ragged, padded_left=padded_left, seed=seed)
    return Case(f"{batch} x {length} {signature.unit}, {kind}", arrays)


def cases(signature: Signature) -> list[Case]:
    """Batches 1, 3 and 8; lengths 1, 2, odd and the longest, in a batch up to ``_LONG``; full and, of a model with a
    mask, ragged and padded on the left."""
    longest = signature.max_length
    odd, middle = min(37, longest), min(64, longest)
    shapes = [
        (1, 1, False),
        (1, min(2, longest), False),
        (3, min(2, longest), True),
        (3, odd, True),
        (8, min(7, longest), True),
        (8, middle, True),
        (1, longest, False),
        (3, min(_LONG, longest), True),
    ]
    masked = signature.role("mask") is not None
    made = [make_case(signature, batch, length, ragged=ragged and masked) for batch, length, ragged in shapes]
    return [*made, make_case(signature, 3, odd, ragged=True, padded_left=True)] if masked else made


def kept_case(signature: Signature) -> Case:
    """The one that a bundle carries along, to be verified anywhere."""
    return make_case(signature, 3, min(37, signature.max_length), ragged=True, seed=1)
