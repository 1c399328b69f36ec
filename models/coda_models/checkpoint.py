"""Checkpoints: ``model.pt``, complete or a delta on a named backbone, and Hugging Face style folders.

Files are data: torch reads them with ``weights_only=True``, safetensors holds nothing but tensors, and every tensor is
covered by a SHA-256 that is checked on loading.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from coda_models.backbone import build_backbone, load_backbone, load_tokenizer
from coda_models.config import CodaConfig
from coda_models.conversion import convert
from coda_models.digest import tensor_digest
from coda_models.errors import BackboneError, CheckpointError
from coda_models.model import CodaModel
from coda_models.sizes import check_backbone, check_labels, check_learned
from coda_ops.errors import CodaError, OptionError, first_line, shown
from coda_ops.files import replacing_file
from coda_ops.foreign_json import json_object
from coda_ops.records import as_record
from coda_targets.fidelity import Fidelity

FORMAT = "coda-checkpoint"
FORMAT_VERSION = 1
_DTYPES = {  # neither complex nor quantised, nor so short that torch itself computes little with them
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
FOLDER_KEY = "coda"  # where a folder's config.json keeps the CodaConfig


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory: the model in evaluation mode and, where it is known, its tokenizer.

    Attributes:
        backbone: of a delta, the folder or hub name that the rest came from.
        fidelity: what was measured of these tensors when they were saved; of a model that was routed.
    """

    model: CodaModel
    tokenizer: PreTrainedTokenizerBase | None
    backbone: Path | str | None = None
    fidelity: Fidelity | None = None


def save(
    model: CodaModel,
    path: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    delta: bool = False,
    fidelity: Fidelity | None = None,
) -> None:
    """Write ``model.pt``.

    Args:
        model: what to save.
        path: the file; replaced whole or not at all.
        tokenizer: saved along in a complete checkpoint; of a delta only how it truncates is kept.
        delta: leave the frozen backbone out, to be found again by name and SHA-256 (1 to 2 MB instead of all weights).
        fidelity: what was measured of the model as it is now.

    Raises:
        CheckpointError: the folder to write into does not exist.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise CheckpointError(f"{path.parent} does not exist: make it before saving {path.name} there")
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if delta:
        kept = set(model.trainable_names())
        state = {name: tensor for name, tensor in state.items() if name in kept}
    payload = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "delta" if delta else "complete",
        "coda_config": model.coda_config.to_dict(),
        "hf_config": portable_config(model.hf_config),
        "state": {name: tensor.clone() for name, tensor in state.items()},
        "sha256": tensor_digest(state),
        "truncation_side": "right" if tokenizer is None else tokenizer.truncation_side,
        "tokenizer_files": {} if tokenizer is None or delta else _tokenizer_files(tokenizer),
        "fidelity": None if fidelity is None else asdict(fidelity),
    }
    with replacing_file(path) as new:
        torch.save(payload, new)


def portable_config(config: PretrainedConfig) -> dict[str, Any]:
    """A Hugging Face configuration as plain values, without what only says where it was made."""
    local = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation_autoset"}
    return {name: value for name, value in config.to_dict().items() if name not in local}


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A tokenizer's files as text."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        # Without the legacy files: a fast tokenizer needs none, and some (sentencepiece models) are no text.
        tokenizer.save_pretrained(folder, legacy_format=False if tokenizer.is_fast else None)
        return {file.name: file.read_text("utf-8") for file in sorted(Path(folder).iterdir())}


def load(path: Path | str, *, backbone: Path | str | None = None) -> Loaded:
    """Read a ``model.pt`` or a checkpoint folder.

    Args:
        path: what ``save`` or ``save_pretrained`` wrote.
        backbone: where a delta's backbone is, a folder or a hub name; by default what the delta names.

    Raises:
        CheckpointError: missing, no checkpoint, damaged, or holding something else than tensors.
        BackboneError: a delta's backbone cannot be read.
        OptionError: none is named, it is not found, or it is not the one that the delta was trained on.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        return from_pretrained(path)
    payload = _read(path)
    config = CodaConfig.from_dict(payload["coda_config"])
    source: Path | str | None = None
    if payload["kind"] == "delta":
        source = backbone or config.backbone
        if not source:
            raise OptionError("{path} is a delta that names no backbone: pass one as {backbone}", path=path)
        hf_config = _hf_config(payload["hf_config"], path)
        pretrained = load_backbone(source, config.backbone_task, hf_config=hf_config)
        check_learned(config, hf_config, path.stat().st_size, path)
        tokenizer = load_tokenizer(source)
        model = convert(pretrained, config)
    else:
        model = _empty(_hf_config(payload["hf_config"], path), config, path, path)
        tokenizer = _tokenizer_from(payload["tokenizer_files"], path)
    if tokenizer is not None:
        tokenizer.truncation_side = payload["truncation_side"]
    expected = set(model.trainable_names()) if payload["kind"] == "delta" else set(model.state_dict())
    _fill(model, payload["state"], expected, payload["sha256"], path)
    fidelity = payload.get("fidelity")
    if fidelity is not None:
        what = f"{path} is damaged: its field 'fidelity'"
        fidelity = as_record(fidelity, Fidelity, what=what, error=CheckpointError)
    return Loaded(model, tokenizer, source, fidelity)


def _tokenizer_from(files: Mapping[str, str], path: Path) -> PreTrainedTokenizerBase | None:
    from tempfile import TemporaryDirectory

    if not files:
        return None
    with TemporaryDirectory() as folder:
        for name, text in files.items():
            if not isinstance(name, str) or not isinstance(text, str) or Path(name).name != name:
                raise CheckpointError(f"{path} carries a tokenizer file with a bad name {name!r}")
            try:
                (Path(folder) / name).write_text(text, "utf-8")
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{path} carries a tokenizer file {name!r} that cannot be written: {first_line(error)}"
                ) from None
        try:
            return load_tokenizer(folder)
        except BackboneError as error:
            reason = first_line(error.__cause__ or error)
            raise CheckpointError(f"{path} carries a tokenizer that cannot be read: {reason}") from None


def rebuilt(model: CodaModel) -> CodaModel:
    """What loading a complete checkpoint of a model would give.

    Raises:
        CheckpointError: the model has a part that its configurations do not speak of, or another form of one.
    """
    path = Path("the checkpoint")
    empty = _empty(_hf_config(portable_config(model.hf_config), path), model.coda_config, path)
    state, own = model.state_dict(), empty.state_dict()
    strange = [name for name in sorted(set(state) | set(own)) if not _alike(state.get(name), own.get(name))]
    if strange:
        raise CheckpointError(f"a checkpoint has no place for {strange[0]!r} as this model has it")
    empty.load_state_dict(state)
    return empty


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def _empty(hf_config: PretrainedConfig, config: CodaConfig, path: Path, weights: Path | None = None) -> CodaModel:
    """The untrained model that a checkpoint describes, to be filled with its tensors.

    Args:
        weights: the file of the tensors, which has to be as large as what is described.
    """
    if weights is not None:
        held = weights.stat().st_size
        check_backbone(hf_config, held, path)
        check_learned(config, hf_config, held, path)
    try:
        model = convert(build_backbone(hf_config, config.backbone_task), replace(config, backbone_sha256=""))
    except CodaError:
        raise
    except Exception as error:  # transformers and torch check sizes and names in their own ways, with any exception
        raise CheckpointError(f"{path} describes a model that cannot be built: {first_line(error)}") from error
    model.coda_config = config
    return model


def _hf_config(plain: Any, path: Path) -> PretrainedConfig:
    check_labels(plain, path)
    try:
        return AutoConfig.for_model(**plain)
    except Exception as error:  # what a configuration class makes of a bad field is its own affair
        raise CheckpointError(f"{path} describes no known architecture: {first_line(error)}") from error


_FIELDS = {
    "kind": str,
    "coda_config": dict,
    "hf_config": dict,
    "state": dict,
    "sha256": str,
    "truncation_side": str,
    "tokenizer_files": dict,
}


def read_archive(path: Path) -> Any:
    """What ``torch.save`` wrote, without running any code that the file may hold.

    Raises:
        CheckpointError: no such archive, damaged, or holding more than tensors and plain values.
    """
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = first_line(error)
        if "Weights only load failed" in reason or "Unsupported" in str(error):
            raise CheckpointError(
                f"{path} holds Python code beside tensors and was not opened: save it again without"
            ) from None
        raise CheckpointError(f"{path} is damaged: {reason}") from None
    except Exception as error:  # the unpickler lets out whatever a stray opcode runs into
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    """The payload of a ``model.pt``, checked in form."""
    payload = read_archive(path)
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a torch file but no CoDA checkpoint: write one with coda_models.save")
    if payload.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {payload.get('format_version')!r}; this release reads {FORMAT_VERSION}"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(payload.get(name), kind):
            raise CheckpointError(f"{path} is damaged: its field {name!r} is missing or of the wrong type")
    for name, known in (("kind", ("complete", "delta")), ("truncation_side", ("left", "right"))):
        if payload[name] not in known:
            raise CheckpointError(
                f"{path} is damaged: its field {name!r} is {shown(payload[name])}, not one of {known}"
            )
    return payload


def _check_archive(path: Path) -> None:
    """Refuse a file that is no torch archive or has a bad checksum inside: torch itself does not look at those."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no checkpoint or is cut off: expected one that torch.save wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith("/data.pkl") for name in archive.namelist())
            bad = archive.testzip()
    except Exception as error:  # zipfile has a dozen kinds for a damaged directory
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error
    if not pickled:
        raise CheckpointError(f"{path} is a zip archive but no torch file")
    if bad is not None:
        raise CheckpointError(f"{path} is damaged: its part {bad!r} does not have the checksum that it records")


def _fill(model: CodaModel, state: Mapping[str, Any], expected: set[str], sha256: str, path: Path) -> None:
    """Copy checked tensors into the model."""
    own = model.state_dict()
    missing, extra = sorted(expected - set(state)), sorted(set(state) - expected, key=str)
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown tensor {extra[0]!r}"
        raise CheckpointError(f"{path} does not fit its own configuration: it {what}")
    check_plain_tensors(state, path)
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path} does not fit its own configuration: {name!r} has shape {list(tensor.shape)}, "
                f"expected {list(own[name].shape)}"
            )
    if tensor_digest(state) != sha256:
        raise CheckpointError(f"{path} is damaged: its tensors do not have the SHA-256 that it records")
    check_finite(state, path)
    model.load_state_dict(dict(state), strict=False)


def check_plain_tensors(state: Mapping[Any, Any], path: Path) -> None:
    """Refuse anything but dense tensors of whole or floating-point numbers.

    Raises:
        CheckpointError: names the first that is something else.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path} is damaged: {shown(name)} is no tensor")
        strange = tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu"
        if strange or tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{path} is damaged: {shown(name)} is no dense tensor of plain numbers")


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinite weights.

    Raises:
        CheckpointError: names the first tensor that has some.
    """
    bad = next((n for n, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)
    if bad is not None:
        raise CheckpointError(f"{path} holds NaN or infinite weights in {bad!r}: training diverged, train it again")


def save_pretrained(model: CodaModel, folder: Path | str, *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a folder with config.json (the CodaConfig under ``coda``), model.safetensors and tokenizer files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_folder_config(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def write_folder_config(model: CodaModel, folder: Path) -> None:
    """Write the config.json that makes a checkpoint folder of one that holds the model's model.safetensors."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    config = portable_config(model.hf_config)
    config[FOLDER_KEY] = {**model.coda_config.to_dict(), "sha256": tensor_digest(state)}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether a folder's config.json says that it holds a CoDA model."""
    return _folder_config(folder) is not None


def _folder_config(folder: Path) -> dict[str, Any] | None:
    """A checkpoint folder's config.json, or ``None`` where the folder is no checkpoint."""
    plain = json_object(folder / "config.json")
    return plain if plain is not None and isinstance(plain.get(FOLDER_KEY), dict) else None


def from_pretrained(folder: Path | str) -> Loaded:
    """Read what ``save_pretrained`` wrote.

    Raises:
        CheckpointError: as for ``load``.
    """
    folder = Path(folder)
    plain = _folder_config(folder)
    if plain is None:
        raise CheckpointError(
            f"{folder} is no CoDA checkpoint: its config.json is missing or has no {FOLDER_KEY!r} part"
        )
    coda = plain.pop(FOLDER_KEY)
    sha256 = coda.pop("sha256", "")
    config = CodaConfig.from_dict(coda)
    weights = folder / "model.safetensors"
    try:
        state = safetensors.torch.load_file(weights)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no model.safetensors") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{weights} is damaged or cut off: {first_line(error)}") from None
    model = _empty(_hf_config(plain, folder), config, folder, weights)
    _fill(model, state, set(model.state_dict()), sha256, weights)
    return Loaded(model, load_tokenizer(folder))
