"""States of all batches between two layers, in a temporary folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from coda_models.errors import ConfigError
from coda_ops.errors import first_line


class States:
    """One array a name and batch, in a file each; written again it is replaced.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, name: str, batch: int, tensor: Tensor) -> None:
        """Write one, as float32 or better.

        Raises:
            ConfigError: there is no room for it.
        """
        if tensor.is_floating_point():
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        try:
            np.save(self._folder / f"{name}-{batch}.npy", tensor.cpu().numpy())
        except OSError as error:
            raise ConfigError(
                f"the states of the texts do not fit into {self._folder.parent} ({first_line(error)}): "
                "set TMPDIR to a folder with more room, or pass fewer texts"
            ) from None

    def read(self, name: str, batch: int, like: Tensor) -> Tensor:
        """What was kept, on the device of another tensor and, of floats, in its type."""
        kept = torch.from_numpy(np.load(self._folder / f"{name}-{batch}.npy"))
        return kept.to(like) if kept.is_floating_point() else kept.to(like.device)


@contextmanager
def kept_states() -> Iterator[States]:
    """An empty ``States``, gone at the end and on Ctrl-C."""
    with TemporaryDirectory(prefix="coda-states-") as folder:
        yield States(Path(folder))
