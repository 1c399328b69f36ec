"""Sizes that configurations of the ``adapters`` library ask for, held against the weights beside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coda_compile.sources import ADAPTER_CONFIG
from coda_compile.sources.adapterhub_heads import HEAD_CONFIG, read_settings
from coda_models.errors import CheckpointError
from coda_ops.errors import shown

_WEIGHTS = ("*.safetensors", "*.bin")
_FACTORS = ("reduction_factor", "inv_adapter_reduction_factor")  # of the base model's width
_ROWS = ("prefix_length", "layers", "num_labels")  # of as many numbers as the base model is wide
_RANKS = ("bottleneck_size", "r")  # whose matrices need not be saved
_SIZES = (*_FACTORS, *_ROWS, *_RANKS)


def check_sizes(folder: Path, width: int) -> None:
    """Refuse an adapter, or a head, that would be larger than its weights, before the library makes it.

    Args:
        width: of the base model.

    Raises:
        CheckpointError: names the first such setting.
    """
    held = sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
    for path in (folder / ADAPTER_CONFIG, folder / HEAD_CONFIG):
        for name, value in _numbers(read_settings(path).get("config")) if path.is_file() else ():
            size = width / value if name in _FACTORS and value > 0 else value
            if name in _SIZES and not size * (1 if name in _RANKS else width) <= held:
                raise CheckpointError(
                    f"{path} has {name} {shown(value)}, and the weights beside it hold no such size: save it again"
                )


def _numbers(plain: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a JSON value, by the last key that means something here."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from _numbers(value, key if key in _SIZES else name)
    elif isinstance(plain, list):
        for value in plain:
            yield from _numbers(value, name)
    elif isinstance(plain, int | float) and not isinstance(plain, bool):
        yield name, plain
