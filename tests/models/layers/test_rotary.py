"""Rotary positions: what transformers computes, at whatever positions tokens have."""

import torch
from tests.models.inputs import states
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from coda_models.layers.rotary import Rotary


def tables(positions=20, half=4):
    angle = torch.arange(positions).double().unsqueeze(1) / 10 ** torch.arange(half)
    return angle.cos(), angle.sin()


def test_gathered_tokens_turn_by_their_own_positions():
    cos, sin = tables()
    x, at = states(2, 5, 24), torch.tensor([[0, 3, 4, 11, 19], [1, 2, 3, 4, 5]])
    wide = [torch.cat((table[at],) * 2, -1) for table in (cos, sin)]  # [batch, tokens, head]
    wanted, _ = apply_rotary_pos_emb(x.unflatten(-1, (3, 8)).transpose(1, 2), torch.zeros(1), *wide)
    made = Rotary(cos, sin)(x, at, 3)
    torch.testing.assert_close(made, wanted.transpose(1, 2).flatten(2), rtol=0, atol=1e-14)


def test_products_depend_on_distances_alone():
    turn, x = Rotary(*tables()), states(1, 2, 8)
    first, second = (turn(x, torch.tensor([[at, at + 7]]), 1)[0] for at in (0, 9))
    torch.testing.assert_close(first[0] @ first[1], second[0] @ second[1])


def test_tables_are_no_part_of_the_state():
    assert not Rotary(*tables()).state_dict()
