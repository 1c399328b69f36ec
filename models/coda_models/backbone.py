"""Pretrained Hugging Face encoders: from a folder, the local hub cache or the hub, or built from a config alone."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)

from coda_models.errors import BackboneError
from coda_models.sizes import check_backbone, check_labels
from coda_models.standard_names import strange_names
from coda_models.untrusted import INDICES, ReadJson, check_listed, check_shards, check_tokenizer, settled
from coda_ops.errors import CodaError, OptionError, first_line
from coda_ops.files import check_plain
from coda_ops.foreign_json import json_object

_LISTING = "modules.json"  # of sentence-transformers
_SMALL: dict[str, Any] = {
    "allow_patterns": ["*.json", "[0-9]_*/*"],
    "ignore_patterns": ["*.index.json", "0_*/*.bin", "0_*/*.safetensors"],
}
AUTO_CLASSES: dict[str, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "feature-extraction": AutoModel,
}


_ADAPTER = "adapter_config.json"
# What DistributedDataParallel and torch.compile write in front of names, the latter inside them, too.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|\b_orig_mod\.")
# One of them is there wherever AutoTokenizer finds a tokenizer of a supported family, or one that says its class.
_VOCABULARIES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")


def build_backbone(config: PretrainedConfig, task: str) -> PreTrainedModel:
    """An untrained encoder of a known shape, to be filled with a checkpoint's tensors."""
    with torch.random.fork_rng():
        model: PreTrainedModel = AUTO_CLASSES[task].from_config(settled(config, "the checkpoint"))
    return model.float().eval()


def load_backbone(
    source: Path | str,
    task: str,
    *,
    revision: str | None = None,
    hf_config: PretrainedConfig | None = None,
    trained: bool = False,
    supplied: Collection[str] = (),
    reads_pooler: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """A pretrained encoder with the head of a task, in float32.

    Args:
        source: a folder, or a hub name that is looked up in the local cache first and then on the hub.
        revision: of a hub name, a branch, tag or commit; by default the newest.
        hf_config: the configuration to load it with; by default the encoder's own, changed by ``options``.
        trained: refuse weights that lack some, which transformers would fill at random; a head that is yet to be
            trained, or comes with a delta, is lacking.
        supplied: names of tensors that the caller will bring, so that they may be lacking or of other shapes.
        reads_pooler: a head of the caller's own reads the pooler of a bare encoder, so that it may not be lacking.

    Raises:
        BackboneError: not found, unreadable, incomplete, or with tensors that transformers would leave out.
        UnsupportedModelError: a configuration that no standard class is all there is to.
    """
    _check_folder(Path(source))
    found = hf_config or _changed(_attempt(source, _read_config, revision), options)
    config = settled(found, source)
    load = partial(_load, AUTO_CLASSES[task], ignore_mismatched_sizes=bool(supplied))
    with quiet():
        model, info = _attempt(source, load, revision, config=config)
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]  # or with shapes
    if other := sorted(name for name in mismatched if name not in supplied):
        raise BackboneError(
            f"the weights in {source} hold {other[0]!r} of another shape than its config.json describes: save the "
            "model again"
        )
    if strange := strange_names(info["unexpected_keys"], config):
        raise BackboneError(
            f"the weights in {source} hold {strange[0]!r}, for which {type(model).__name__} as config.json "
            "describes it has no place, so it would be left out: merge what was added, or give what the library that "
            "added it saves (save_adapter, PEFT's save_pretrained)"
        )
    optional = set(supplied)
    if not reads_pooler:
        optional |= _unread(task, info["missing_keys"])
    lacking = sorted(set(info["missing_keys"]) - optional)
    absent = [name for name, tensor in model.named_parameters() if tensor.is_meta]  # an index lists more than is there
    if absent:
        raise BackboneError(
            f"the weights in {source} lack {absent[0]!r}, which their index lists: save the model again"
        )
    if trained and lacking:
        raise BackboneError(
            f"the weights in {source} lack {lacking[0]!r}: train the model for {task} and save it again"
        )
    pretrained: PreTrainedModel = model.float().eval()
    return pretrained


def _unread(task: str, names: Collection[str]) -> set[str]:
    """Those of the names that nothing reads: a bare encoder's pooler, which answers no task of ours.

    A class with a head has a pooler because the head reads it: ``bert.pooler`` of BERT's, ``pooler`` of DeBERTa's.
    """
    return {name for name in names if name.startswith("pooler.")} if task == "feature-extraction" else set()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars, and its advice to train whatever is lacking."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(
    source: Path | str, revision: str | None = None, *, what: str = "backbone"
) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside an encoder, or ``None`` where there is none.

    Args:
        what: the source is to its user, for messages: ``backbone`` or ``tokenizer``.
    """
    check_plain(Path(source))
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _VOCABULARIES):
        return None
    tokenizer: PreTrainedTokenizerBase = _attempt(source, _load_tokenizer, revision, what=what)
    return tokenizer


def folder_of(source: Path | str, revision: str | None = None) -> Path | None:
    """Where the small files beside an encoder lie: its folder or, of a hub name, a snapshot with all that is in reach.

    Returns:
        ``None`` where neither the local cache nor a hub in reach has any.
    """
    if Path(source).is_dir():
        return Path(source)
    found = None
    for offline in (True, False):
        try:
            found = Path(snapshot_download(str(source), revision=revision, local_files_only=offline, **_SMALL))
        except Exception:  # huggingface_hub's and its HTTP library's own: what is in the cache is all there is
            continue
        if (found / _LISTING).is_file():  # sentence-transformers or a run before has fetched them all
            break
    return found


def _changed(config: PretrainedConfig, options: dict[str, Any]) -> PretrainedConfig:
    """A configuration with other values; for another number of labels, without what the former head's stood for."""
    if options.get("num_labels", config.num_labels) != config.num_labels:
        config.problem_type = None
    for name, value in options.items():
        setattr(config, name, value)
    return config


def _read_config(source: str, *, local_files_only: bool = False, **options: Any) -> Any:
    find = partial(_find, source, local_files_only, options.get("revision"))
    check_labels(_json(find, CONFIG_NAME) or {}, source)
    return AutoConfig.from_pretrained(source, local_files_only=local_files_only, **options)


def _load(auto: Any, source: str, *, local_files_only: bool = False, **options: Any) -> Any:
    """A model, and what transformers says of its tensors."""
    find = partial(_find, source, local_files_only, options.get("revision"))
    read = cache(partial(_json, find))
    if read(_ADAPTER) is not None:  # transformers would load another model, the one that this file names
        raise BackboneError(f"{source} is an adapter, and a backbone is a whole model: merge it first")
    check_shards(read, source)
    if held := _bytes(find, read):
        check_backbone(options["config"], held, source)
    loaded = auto.from_pretrained(source, local_files_only=local_files_only, output_loading_info=True, **options)
    if any(_WRAPPERS.search(name) for name in loaded[1]["unexpected_keys"]):
        given = _unwrapped(find, source)
        loaded = type(loaded[0]).from_pretrained(None, state_dict=given, output_loading_info=True, **options)
    index = None if find(SAFE_WEIGHTS_NAME) else find(SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        check_listed(index)
    return loaded


def _bytes(find: Callable[[str], Path | None], read: ReadJson) -> int:
    """Of the weights that transformers will find; 0 where there are none."""
    whole = next(filter(None, map(find, (SAFE_WEIGHTS_NAME, WEIGHTS_NAME))), None)
    if whole is not None:
        return whole.stat().st_size
    listed = next(filter(None, map(read, INDICES)), {}).get("weight_map")
    shards = map(find, sorted(set(listed.values()))) if isinstance(listed, dict) else ()
    return sum(shard.stat().st_size for shard in shards if shard is not None)


def _unwrapped(find: Callable[[str], Path | None], source: str) -> dict[str, torch.Tensor]:
    """Tensors by the names that they have in the module inside; transformers has opened the file before.

    Raises:
        BackboneError: they lie in several files.
    """
    if path := find(SAFE_WEIGHTS_NAME):
        tensors = load_file(path)
    elif path := find(WEIGHTS_NAME):
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise BackboneError(
            f"the weights in {source} are of a wrapped module ('module.' or '_orig_mod.' in front of their names): "
            "save the module inside it"
        )
    return {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}


def _load_tokenizer(source: str, *, local_files_only: bool = False, **options: Any) -> Any:
    find = partial(_find, source, local_files_only, options.get("revision"))
    check_tokenizer(cache(partial(_json, find)), source)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only, **options)
    if tokenizer.model_input_names is None:  # null in its file, on which transformers itself would stumble later
        tokenizer.model_input_names = type(tokenizer).model_input_names
    return tokenizer


def _find(source: str, local_files_only: bool, revision: str | None, name: str) -> Path | None:
    """A file of a folder, or of a hub name; ``None`` where there is none."""
    path = cached_file(
        source,
        name,
        revision=revision,
        local_files_only=local_files_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _json(find: Callable[[str], Path | None], name: str) -> dict[str, Any] | None:
    """What a JSON file holds; ``None`` where there is none or it holds no object."""
    path = find(name)
    return None if path is None else json_object(path)


def _attempt(
    source: Path | str, load: Any, revision: str | None = None, *, what: str = "backbone", **options: Any
) -> Any:
    """Load offline, then online where the source may be a hub name; never run code that comes with it."""
    if revision is not None and not Path(source).exists():
        options["revision"] = revision
    try:
        return load(str(source), local_files_only=True, trust_remote_code=False, **options)
    except CodaError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each have their own kinds
        if Path(source).exists():
            raise BackboneError(f"the {what} in {source} cannot be read: {_reason(error)}") from error
    _ask_hub(str(source), what)
    try:
        return load(str(source), trust_remote_code=False, **options)
    except CodaError:
        raise
    except Exception as error:
        raise BackboneError(f"the {what} {source!r} cannot be read from the hub: {_reason(error)}") from error


def _check_folder(path: Path) -> None:
    """Refuse what is not a pretrained encoder's folder, of which transformers would say something else.

    Raises:
        BackboneError: says what it is.
    """
    asked = "give the folder of a pretrained encoder, as save_pretrained writes it"
    check_plain(path)
    if path.is_file():
        raise BackboneError(f"{path} is a file, and a backbone is a folder: {asked}")
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise BackboneError(f"{path} is an adapter, and a backbone is what it was trained on: {asked}")


def _reason(error: Exception) -> str:
    """One line that says what is wrong; of tensors that do not fit, torch says it in its second."""
    mismatch = re.search("size mismatch for .*", str(error))
    if mismatch is None:
        return first_line(error)
    return (
        "its weights have other shapes than its config.json describes, of which a head has one row for each class in "
        f"id2label: {mismatch[0].rstrip('.')}"
    )


def _ask_hub(name: str, what: str) -> None:
    """One question to the hub, since a download without a connection retries for minutes.

    Raises:
        OptionError: no hub in reach has it.
    """
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # huggingface_hub's and its HTTP library's own, which changed between releases
        raise OptionError(
            f"the {what} {{name!r}} is neither a folder, nor in the local hub cache, nor on a hub in reach: pass its "
            f"folder as {{{what}}}",
            name=name,
        ) from error
