"""Inputs for the tiny models: ragged batches and the ways a layer is called."""

from fractions import Fraction

import torch

# Above 1 by too little to leave a token out of 64: the routed path with nothing to select.
ALL_BUT_IN_NAME = Fraction(1001, 1000)


def ragged(lengths, tokens=None, seed=0):
    """input_ids and attention_mask, row i of lengths[i] random words, padded on the right to ``tokens``."""
    generator = torch.Generator().manual_seed(seed)
    tokens = tokens or max(lengths)
    ids = torch.zeros(len(lengths), tokens, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, 100, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def states(batch, tokens, width=32, seed=0, dtype=torch.float64):
    """Random hidden states. [batch, tokens, width]"""
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def table_of(model, tokens):
    """The relative bias by distance, of the backbones that have one."""
    return None if model.relative_bias is None else model.relative_bias.table(tokens)
