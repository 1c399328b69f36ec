"""ModernBERT (Warner et al. 2024): pre-norm, rotary positions, windows in most layers, gated feed-forward."""

from typing import Any

import torch
from torch import Tensor, nn

from coda_models.architectures import FirstToken, Parts, text_inputs
from coda_models.errors import UnsupportedModelError
from coda_models.layers.attention import Attention
from coda_models.layers.feed_forward import GatedFeedForward
from coda_models.layers.layer import Block, PreNormBlock
from coda_models.layers.rotary import Rotary
from coda_ops.errors import shown
from coda_targets.signature import Signature

_SCALINGS = ("default", "linear", "yarn")  # others change with the length of a batch
_MOST_POSITIONS = 1 << 17  # for which tables are made, whatever a configuration says


def _refuse_variants(base: Any) -> None:
    """Refuse rotary positions that no table holds, and what transformers itself does not look at.

    Raises:
        UnsupportedModelError: too many positions, another scaling of them, or transformers 5, which keeps them
            elsewhere; a dropout that is no probability.
    """
    if not 0 <= (dropout := base.config.attention_dropout) <= 1:
        raise UnsupportedModelError(
            f"attention_dropout {shown(dropout)} of modernbert is no probability: write one from 0 to 1"
        )
    if (longest := base.config.max_position_embeddings) > _MOST_POSITIONS:
        raise UnsupportedModelError(
            f"max_position_embeddings {longest} of modernbert is more than the {_MOST_POSITIONS} that are supported: "
            "put the longest text there"
        )
    scaling = getattr(base.config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _SCALINGS:
        raise UnsupportedModelError(
            f"rope_type {shown(kind)} of modernbert is not supported: use {', '.join(_SCALINGS)}"
        )
    if any(not hasattr(layer.attn, "rotary_emb") for layer in base.layers):
        raise UnsupportedModelError("modernbert of this release of transformers is not supported: install 4.57")


def _tables(base: Any, layer: Any) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, [positions, head width / 2], in float32 as transformers computes them."""
    rotary = layer.attn.rotary_emb
    positions = torch.arange(base.config.max_position_embeddings, device=rotary.inv_freq.device)
    angle = positions.float().unsqueeze(1) * rotary.inv_freq.float().unsqueeze(0)
    like, factor = layer.attn.Wqkv.weight, rotary.attention_scaling  # YaRN's, which scales local layers too
    return (angle.cos() * factor).to(like), (angle.sin() * factor).to(like)


def _split(fused: nn.Linear) -> list[nn.Linear]:
    """Queries, keys and values of one product as a product each."""
    made, inner = [], fused.out_features // 3
    for part in range(3):
        rows = slice(part * inner, (part + 1) * inner)
        one = nn.Linear(fused.in_features, inner, bias=fused.bias is not None, device="meta")
        one.weight = nn.Parameter(fused.weight[rows].detach().clone())
        if fused.bias is not None:
            one.bias = nn.Parameter(fused.bias[rows].detach().clone())
        made.append(one)
    return made


def _block(layer: Any, config: Any, tables: tuple[Tensor, Tensor], window: int | None) -> PreNormBlock:
    query, key, value = _split(layer.attn.Wqkv)
    return PreNormBlock(
        Attention(
            query,
            key,
            value,
            layer.attn.Wo,
            config.num_attention_heads,
            config.attention_dropout,
            rotary=Rotary(*tables),
            window=window,
        ),
        GatedFeedForward(layer.mlp.Wi, layer.mlp.act, layer.mlp.Wo, config.mlp_dropout),
        layer.attn_norm,
        layer.mlp_norm,
        config.attention_dropout,
        drops_inside=True,
    )


def _blocks(base: Any) -> list[Block]:
    """Layer i sees all tokens where i is a multiple of ``global_attn_every_n_layers``, elsewhere a window around each.

    Layers of one kind share their tables.
    """
    config, made = base.config, list[Block]()
    tables: dict[bool, tuple[Tensor, Tensor]] = {}
    for i, layer in enumerate(base.layers):
        local = i % config.global_attn_every_n_layers != 0
        if local not in tables:
            tables[local] = _tables(base, layer)
        made.append(_block(layer, config, tables[local], config.local_attention // 2 if local else None))
    return made


def signature(config: Any) -> Signature:
    """Ids and mask, as many as there are positions."""
    return text_inputs(config, config.max_position_embeddings)


def pooling(config: Any) -> str:
    """What the head for sequences reads."""
    return "mean" if config.classifier_pooling == "mean" else "first"


def parts(model: Any, task: str) -> Parts:
    """Take a ModernBERT model apart."""
    base = model.base_model
    _refuse_variants(base)
    model.config.reference_compile = False  # or the embeddings would call torch.compile
    head = None
    if task != "feature-extraction":
        first = [FirstToken()] if task == "sequence-classification" else []
        head = nn.Sequential(*first, model.head, model.drop, model.classifier)
    return Parts(
        embeddings=base.embeddings,
        blocks=_blocks(base),
        head=head,
        signature=signature(model.config),
        final_norm=base.final_norm,
    )
