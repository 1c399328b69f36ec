"""PEFT folders: changed weights are merged, prefixes and prompts become constants."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coda_compile.errors import CompileError, OptionError
from coda_compile.logits import cross_encoder_keys
from coda_compile.sources import ADAPTER_CONFIG as CONFIG
from coda_compile.sources.classes import take_beside
from coda_compile.sources.huggingface import TASK_OF_HEAD, of_task
from coda_compile.sources.peft_settings import check_patterns, check_sizes
from coda_compile.sources.reference import check_same, few_tokens, wanted_answers
from coda_compile.sources.sentence import sentence_of_adapter
from coda_compile.sources.tensors import read_tensors
from coda_compile.sources.torch_model import TorchModel
from coda_models.architectures import signature_of
from coda_models.backbone import folder_of, load_backbone, load_tokenizer
from coda_models.build_parts import fill_prefix, fill_prompt
from coda_models.checkpoint import check_finite
from coda_models.config import CodaConfig
from coda_models.conversion import convert
from coda_models.errors import CheckpointError, UnsupportedModelError
from coda_models.learned_parts import LayerParts, LearnedParts
from coda_models.model import CodaModel
from coda_ops.errors import CodaError, first_line, shown
from coda_ops.foreign_json import json_object

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MERGED = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA")
PROMPTS = ("P_TUNING", "PROMPT_TUNING")
_METHODS = (*MERGED, "PREFIX_TUNING", *PROMPTS)
_TASKS = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_PROMPT = "prompt_embeddings"
_HEADS = (".classifier.weight", ".classifier.out_proj.weight", ".score.weight")
_EMBEDDINGS = (".embeddings.word_embeddings.weight",)


def read(folder: Path, plain: dict[str, Any], backbone: str | None) -> TorchModel:
    """Load a folder that ``PeftModel.save_pretrained`` wrote, with its base model.

    What its classes are is said by the model's own config.json beside it, or by the base's where that has as many.

    Args:
        plain: its ``adapter_config.json``.
        backbone: the base model; by default what the folder names.

    Raises:
        UnsupportedModelError: another method or task, or a base that is quantised.
        CheckpointError: tensors that are missing, too many, or of another base model's shapes.
        CompileError: a model that computes something else than PEFT's.
    """
    _check(folder, plain)
    base = backbone or plain.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise OptionError("{path} names no base model: pass its folder as {backbone}", path=folder / CONFIG)
    revision = None if backbone else _revision(folder, plain)
    tensors = read_tensors(folder, *WEIGHTS)
    check_sizes(folder / CONFIG, plain, tensors)
    beside = folder_of(base, revision)
    task = _TASKS[plain["task_type"]] if plain.get("task_type") else _task_of_class(folder, plain, beside, tensors)
    sentence = sentence_of_adapter(folder, beside) if task == "feature-extraction" else None
    import peft  # after everything that can be told without it

    sizes: dict[str, Any] = {"num_labels": _rows(tensors, _HEADS), "vocab_size": _rows(tensors, _EMBEDDINGS)}
    pretrained = load_backbone(
        base,
        task,
        revision=revision,
        trained=True,
        supplied=[_name_in_base(name) for name in tensors],
        **{key: rows for key, rows in sizes.items() if rows is not None},
    )
    if task.endswith("classification"):
        take_beside(pretrained.config, folder)
    check_patterns(folder / CONFIG, plain, (name for name, _ in pretrained.named_modules()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is checked here
        try:
            adapted = peft.PeftModel.from_pretrained(pretrained, str(folder), torch_device="cpu").float().eval()
            expected = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
        except CodaError:
            raise
        except Exception as error:  # peft, torch and safetensors each have their own kinds
            raise CheckpointError(f"{folder} does not fit the base model {base}: {first_line(error)}") from error
        _check_names(folder, set(tensors), expected)
        config = CodaConfig(
            reduction=1, bottleneck=0, **(of_task(task, pretrained.config) if sentence is None else sentence.settings)
        )
        model = _converted(adapted, pretrained, plain, config, tensors)
    tokenizer = load_tokenizer(folder) or load_tokenizer(base, revision)
    if sentence is not None:
        sentence.complete(model, tokenizer)
    check_finite(model.state_dict(), folder)
    for written in (beside, folder) if task == "sequence-classification" else ():
        if written is not None:
            model.hf_config.update(cross_encoder_keys(written, model.hf_config.to_dict()))
    kind = f"PEFT {plain['peft_type']}"
    if sentence is None:
        return TorchModel(kind, model, tokenizer)
    return TorchModel(kind + sentence.note, model, tokenizer, sentence.about)


def _check(folder: Path, plain: dict[str, Any]) -> None:
    """Refuse a folder whose method or task is not supported."""
    method, task = plain["peft_type"], plain.get("task_type")
    if method not in _METHODS:
        raise UnsupportedModelError(
            f"PEFT method {shown(method)} of {folder} is not supported: use one of {', '.join(_METHODS)}"
        )
    if task is not None and (not isinstance(task, str) or task not in _TASKS):
        raise UnsupportedModelError(
            f"task_type {shown(task)} of {folder} is not supported: use one of {', '.join(_TASKS)}"
        )
    if plain.get("alora_invocation_tokens"):
        raise UnsupportedModelError(f"{folder} is an activated LoRA, which no weight can hold: train a plain one")
    if plain.get("megatron_config"):  # PEFT imports whatever module stands beside it
        raise UnsupportedModelError(f"{folder} is an adapter of Megatron's layers: train one of transformers' own")
    if plain.get("layer_replication"):
        raise UnsupportedModelError(f"{folder} repeats layers of its base (layer_replication): train one that does not")


def _task_of_class(folder: Path, plain: dict[str, Any], base: Path | None, tensors: dict[str, Tensor]) -> str:
    """Of an adapter whose task is left open: what the class is for that it was trained on.

    Args:
        base: where the base model's configuration lies, if it is known.
    """
    mapping = plain.get("auto_mapping")
    classes = [mapping.get("base_model_class")] if isinstance(mapping, dict) else []
    for place in (folder, base):
        config = None if place is None else json_object(place / "config.json")
        named = (config or {}).get("architectures")
        classes += named[:1] if isinstance(named, list) else []
    for name in classes:
        task = next((task for head, task in TASK_OF_HEAD.items() if str(name).endswith(head)), None)
        if task is not None and (task.endswith("classification") or _rows(tensors, _HEADS) is None):
            return task
    raise UnsupportedModelError(
        f"task_type of {folder} is null, and neither its auto_mapping nor a config.json names a class that has its "
        f"head: set task_type in its {CONFIG} to one of {', '.join(_TASKS)}"
    )


def _revision(folder: Path, plain: dict[str, Any]) -> str | None:
    """Of the base model, as ``AutoPeftModel`` loads it."""
    revision = plain.get("revision")
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise CompileError(f"{folder / CONFIG} has revision {shown(revision)}: it should name a branch, tag or commit")
    return revision


def _rows(tensors: dict[str, Tensor], ends: tuple[str, ...]) -> int | None:
    """How many labels a saved head has, or tokens saved embeddings, since neither configuration need say it."""
    return next((len(tensor) for name, tensor in tensors.items() if _ends(name, ends)), None)


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    return f".{_name_in_base(name)}".endswith(ends)


def _name_in_base(name: str) -> str:
    """Of a tensor that was saved whole: its name in the base model."""
    return name.removeprefix("base_model.").removeprefix("model.").replace(".base_layer.", ".")


def _check_names(folder: Path, found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        raise CheckpointError(f"the weights in {folder} lack {missing[0]!r}: save the adapter again")
    # PEFT keeps them where tokens were added.
    kept = {name for name in found if _name_in_base(name).endswith(_EMBEDDINGS)}
    if extra := sorted(found - expected - kept):
        raise CheckpointError(
            f"the weights in {folder} hold {extra[0]!r}, which {CONFIG} does not speak of: save the adapter again"
        )


def _converted(
    adapted: Any, pretrained: Any, plain: dict[str, Any], config: CodaConfig, tensors: dict[str, Tensor]
) -> CodaModel:
    """The adapted model as one of ours, compared with PEFT's own on a few tokens."""
    method = plain["peft_type"]
    untyped = method not in MERGED and config.task == "feature-extraction"  # PEFT drops token types here
    signature = signature_of(pretrained.config)
    inputs = few_tokens(signature.without("types") if untyped else signature)
    what = f"{method} on this {pretrained.config.model_type}"
    wanted = wanted_answers(adapted, inputs, "PEFT", what)  # before it is merged in place
    prompt = tensors.get(_PROMPT)
    if prompt is None:
        model = convert(adapted.merge_and_unload(), config)
    else:
        _unwrap(pretrained)
        tokens, layers = len(prompt), int(pretrained.config.num_hidden_layers)
        parts = LearnedParts(prompt=tokens, token_types=not untyped)
        if method not in PROMPTS:
            prefixes = [LayerParts(prefix=tokens)] * layers
            parts = LearnedParts(offset=tokens, token_types=not untyped, layers=prefixes)
        model = convert(pretrained, replace(config, parts=parts))
        if method in PROMPTS:
            fill_prompt(model, prompt)
        else:
            by_layer = prompt.view(tokens, layers, 2, int(pretrained.config.num_attention_heads), -1)
            fill_prefix(model, by_layer.permute(1, 2, 3, 0, 4))
    check_same(model, inputs, wanted, "PEFT")
    return model


def _unwrap(model: nn.Module) -> None:
    """Put what PEFT trained whole, such as a head, where it kept it beside the original."""
    from peft.utils import ModulesToSaveWrapper

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ModulesToSaveWrapper):
                setattr(parent, name, child.modules_to_save["default"])
