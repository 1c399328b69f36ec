"""Tensors of other libraries' folders; files are data, no code in them runs."""

from pathlib import Path

from torch import Tensor

from coda_models.checkpoint import check_finite, check_plain_tensors, read_archive
from coda_models.errors import CheckpointError
from coda_ops.errors import first_line


def read_tensors(folder: Path, *names: str) -> dict[str, Tensor]:
    """The tensors in the first file that is there, safetensors or torch's own.

    Raises:
        CheckpointError: none of them is there, or it is damaged, or holds anything but finite tensors.
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds no {' or '.join(names)}: save it again")
    tensors = _safe(path) if path.suffix == ".safetensors" else read_archive(path)
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path} holds something else than named tensors: save it again")
    check_plain_tensors(tensors, path)
    check_finite(tensors, path)
    return tensors


def _safe(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None
    return tensors
