"""CoDA checkpoints: ``model.pt`` and folders."""

from pathlib import Path

from coda_compile.sources import Source
from coda_models.checkpoint import load


def read(path: Path, backbone: str | None) -> Source:
    """Load a checkpoint with its backbone."""
    loaded = load(path, backbone=backbone)
    return Source("CoDA checkpoint", loaded.model, loaded.tokenizer)
