"""Encoders of well-known sizes with random weights: speed needs no training."""

import torch
from transformers import AutoConfig

from coda_compile.errors import CodaError
from coda_models import CodaConfig, CodaModel, convert
from coda_models.backbone import build_backbone

# Family and sizes of the published models; everything else is the family's default.
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "bert-base": ("bert", {}),
    "bert-large": (
        "bert",
        {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "distilbert": ("distilbert", {}),
    "minilm-l6": (
        "bert",
        {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    "minilm-l12": (
        "bert",
        {"num_hidden_layers": 12, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    "mpnet-base": ("mpnet", {}),
    "roberta-base": ("roberta", {"vocab_size": 50265, "max_position_embeddings": 514}),
}


def random_model(shape: str, reduction: str = "4") -> CodaModel:
    """A CoDA classifier of a known size with random weights, adapters and routers.

    Raises:
        CodaError: an unknown shape; the message lists the known ones.
    """
    if shape not in SHAPES:
        raise CodaError(f"shape {shape!r} is unknown: use one of {', '.join(SHAPES)}")
    family, sizes = SHAPES[shape]
    torch.manual_seed(0)
    model = convert(
        build_backbone(AutoConfig.for_model(family, **sizes), "sequence-classification"),
        CodaConfig(reduction=reduction),
    )
    for layer in model.coda_layers():
        if layer.adapter is not None:
            torch.nn.init.normal_(layer.adapter.up, std=0.02)
        if layer.router is not None:
            torch.nn.init.normal_(layer.router.weight, std=0.3)  # scores far apart: a random model has no near ties
    return model.eval()
