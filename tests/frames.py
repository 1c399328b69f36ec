"""A routed encoder of frames, such as the spectra of a sound: an architecture and a modality of which no other file
knows. A process that imports this module can compile, load and run its models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from coda_models import CodaConfig, CodaModel, architectures, convert
from coda_models.architectures import FirstToken, Parts
from coda_models.layers.attention import Attention
from coda_models.layers.feed_forward import PlainFeedForward
from coda_models.layers.layer import PreNormBlock
from coda_targets import Bundle
from coda_targets.signature import Arrays, Input, Signature

FRAMES = "frames"


class FramesConfig(PretrainedConfig):
    """Sizes of an encoder of frames."""

    model_type = FRAMES

    def __init__(self, bins: int = 8, longest: int = 40, masked: bool = True, **options: Any) -> None:
        self.bins, self.longest, self.masked = bins, longest, masked
        self.hidden_size, self.num_attention_heads, self.intermediate_size = 32, 4, 48
        super().__init__(**options)


class _Embeddings(nn.Module):
    def __init__(self, config: FramesConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.bins, config.hidden_size)
        self.positions = nn.Embedding(config.longest, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        positions = torch.arange(features.shape[1], device=features.device)
        return self.project(features) + self.positions(positions)  # [batch, frames, width]


class FramesForSequenceClassification(PreTrainedModel):
    """Embeddings, two pre-norm layers, a norm and a head."""

    config_class = FramesConfig

    def __init__(self, config: FramesConfig) -> None:
        super().__init__(config)
        width, wide = config.hidden_size, config.intermediate_size
        self.embeddings = _Embeddings(config)
        self.layers = nn.ModuleList(
            PreNormBlock(
                Attention(*(nn.Linear(width, width) for _ in range(4)), config.num_attention_heads, 0.0),
                PlainFeedForward(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width)),
                nn.LayerNorm(width),
                nn.LayerNorm(width),
                0.0,
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, config.num_labels)


def signature(config: FramesConfig) -> Signature:
    """[batch, frames, bins] float32, and a mask of frames where the configuration has one."""
    features = Input("features", "float32", ("batch", "frames", config.bins), "values", padding=0.5)
    mask = Input("frames_mask", "int64", ("batch", "frames"), "mask")
    return Signature(FRAMES, (features, mask) if config.masked else (features,), config.longest)


def parts(model: FramesForSequenceClassification, task: str) -> Parts:
    """Take it apart."""
    return Parts(
        embeddings=model.embeddings,
        blocks=list(model.layers),
        head=nn.Sequential(FirstToken(), model.classifier),
        signature=signature(model.config),
        final_norm=model.norm,
    )


def tiny_frames(config: CodaConfig | None = None, *, masked: bool = True) -> CodaModel:
    """A model of random weights, adapters and routers."""
    torch.manual_seed(0)
    backbone = FramesForSequenceClassification(FramesConfig(masked=masked, num_labels=3))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.25) if parameter.dim() > 1 else None
    model = convert(backbone.eval(), config or CodaConfig(reduction=2))
    for layer in model.coda_layers():
        if layer.adapter is not None and layer.router is not None:
            torch.nn.init.normal_(layer.adapter.up, std=0.1)
            torch.nn.init.normal_(layer.router.weight, std=0.3)
    return model.eval()


@dataclass(frozen=True)
class Encoded:
    """Recordings, padded to the longest."""

    inputs: Arrays


class FramesCodec:
    """From recordings, [frames, bins] each, to the name of their class."""

    def __init__(self, bundle: Bundle, task: str | None) -> None:
        self._signature = bundle.manifest.signature
        self._labels = bundle.labels(task)

    def encode(self, items: Sequence[NDArray[Any]]) -> Encoded:
        """Padded features and their mask."""
        longest = max(map(len, items))
        mask = np.arange(longest) < np.array([[len(item)] for item in items])
        padded = [np.pad(item, ((0, longest - len(item)), (0, 0))) for item in items]
        features, valid = self._signature.names
        return Encoded({features: np.stack(padded), valid: mask})

    def decode(self, outputs: Arrays, encoded: Encoded, *, raw: bool = False) -> list[dict[str, Any]]:
        """The likeliest label."""
        return [{"label": self._labels[int(i)]} for i in outputs["logits"].argmax(-1)]


AutoConfig.register(FRAMES, FramesConfig, exist_ok=True)
AutoModelForSequenceClassification.register(FramesConfig, FramesForSequenceClassification, exist_ok=True)
architectures.register(FRAMES, __name__)
