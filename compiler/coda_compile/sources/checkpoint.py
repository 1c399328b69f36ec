"""CoDA checkpoints: ``model.pt`` and folders."""

from pathlib import Path

from coda_compile.errors import OptionError
from coda_compile.sources.sentence import MODULES, is_sentence
from coda_compile.sources.torch_model import TorchModel
from coda_compile.sources.truncation import Truncation, read_truncation
from coda_models.backbone import folder_of
from coda_models.checkpoint import load


def read(path: Path, backbone: str | None) -> TorchModel:
    """Load a checkpoint with its backbone.

    A complete one carries a tokenizer that cuts texts as it was trained to; of a delta the backbone says how.

    Raises:
        OptionError: a backbone, and a checkpoint that is complete.
        CodaError: as ``load`` and ``read_truncation`` say.
    """
    loaded = load(path, backbone=backbone)
    if backbone is not None and loaded.backbone is None:
        raise OptionError("{path} is complete: leave {backbone} out", path=path)
    beside = None if loaded.backbone is None else folder_of(loaded.backbone)
    if beside is not None:
        _truncation(beside, loaded.model.coda_config.task).apply(loaded.model, loaded.tokenizer)
    return TorchModel(
        "CoDA checkpoint", loaded.model, loaded.tokenizer, backbone=loaded.backbone, fidelity=loaded.fidelity
    )


def _truncation(folder: Path, task: str) -> Truncation:
    """How a backbone cuts texts, unless its modules are for something else than the delta."""
    listed = (folder / MODULES).is_file()
    if listed and is_sentence(folder) != (task == "feature-extraction"):
        return Truncation()
    return read_truncation(folder, task, stands=listed)
