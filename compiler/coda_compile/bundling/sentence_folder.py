"""What makes a bundle a sentence-transformers model: ``SentenceTransformer(bundle, backend="onnx")``.

sentence-transformers takes ``last_hidden_state`` alone from a graph and pools it itself. So the bundle repeats every
module in files that each of its releases reads.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from coda_compile.sources.prompts import ABOUT
from coda_compile.sources.sentence import MODULES, POOLING_KEYS
from coda_models.sentence import ACTIVATIONS, SentenceModule


def write(
    folder: Path,
    poolings: tuple[str, ...],
    behind: Sequence[tuple[SentenceModule, dict[str, Tensor]]],
    *,
    width: int,
    max_length: int,
    about: dict[str, Any],
) -> None:
    """Write modules.json and what it lists, of a model that embeds texts.

    Args:
        poolings: as ``CodaConfig`` has them.
        behind: the modules behind them, with their tensors.
        width: of the states.
        max_length: tokens that texts are cut to.
        about: as ``TorchModel`` has it.
    """
    listed = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for module, tensors in behind:
        if module.kind != "Truncate":
            listed.append((f"{len(listed)}_{module.kind}", module.kind))
            _write_module(folder / listed[-1][0], module, tensors)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(listed)
    ]
    whole = bool(about.get("include_prompt", True))
    _write(folder / "1_Pooling" / "config.json", _pooling(poolings, width, whole))
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(
        folder / ABOUT,
        {
            "model_type": "SentenceTransformer",
            "prompts": about.get("prompts") or {},
            "default_prompt_name": None,
            "similarity_fn_name": about.get("similarity_fn_name"),
            "truncate_dim": next((one.outputs for one, _ in behind if one.kind == "Truncate"), None),
        },
    )
    _write(folder / MODULES, modules)


def _pooling(poolings: tuple[str, ...], width: int, whole: bool) -> dict[str, Any]:
    """A Pooling's configuration, by the keys that every release knows where these can say it."""
    if list(poolings) == [one for one in POOLING_KEYS if one in poolings]:
        flags = {key: one in poolings for one, (key, _) in POOLING_KEYS.items()}
        return {"word_embedding_dimension": width, **flags, "include_prompt": whole}
    words = [POOLING_KEYS[one][1] for one in poolings]
    return {"embedding_dimension": width, "pooling_mode": words, "include_prompt": whole}


def _write_module(folder: Path, module: SentenceModule, tensors: dict[str, Tensor]) -> None:
    if module.kind == "Normalize":
        return  # it has nothing to say
    folder.mkdir()
    plain: dict[str, Any] = {"dimension": module.outputs}
    if module.kind == "Dense":
        activation = ACTIVATIONS[module.activation]
        plain = {
            "in_features": module.inputs,
            "out_features": module.outputs,
            "bias": module.bias,
            "activation_function": f"{activation.__module__}.{activation.__qualname__}",
        }
    _write(folder / "config.json", plain)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def _write(path: Path, plain: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
