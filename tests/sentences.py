"""Folders that sentence-transformers itself saves, and what it makes of texts with them."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tests.conftest import tiny_backbone
from transformers import PreTrainedTokenizerFast

from coda_targets import Bundle
from coda_targets.modalities.text import TextCodec

TEXTS = ["good film", "bad plot w1 w2 w3 w4 w5", "w9 w8 w7 " * 60, "film"]
OLD_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def save_sentence(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *behind: torch.nn.Module,
    pooling: Any = "mean",
    family: str = "bert",
    **settings: Any,
) -> Path:
    """A folder with a tiny transformer, a pooling and modules behind it, whose weights are lively."""
    base = folder.with_name(f"{folder.name}-base")
    tiny_backbone(family, "feature-extraction").save_pretrained(base)
    tokenizer.save_pretrained(base)
    torch.manual_seed(3)
    for parameter in torch.nn.ModuleList(behind).parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [modules.Transformer(str(base)), modules.Pooling(32, pooling), *behind]
        SentenceTransformer(modules=parts, device="cpu", **settings).save_pretrained(
            str(folder), create_model_card=False
        )
    return folder


def in_old_format(folder: Path) -> None:
    """Write a folder's modules and pooling as releases before 5.4 did."""
    for one in (listed := json.loads((folder / "modules.json").read_text())):
        one["type"] = f"sentence_transformers.models.{one['type'].rpartition('.')[2]}"
    (folder / "modules.json").write_text(json.dumps(listed))
    path = folder / "1_Pooling" / "config.json"
    modes = json.loads(path.read_text())["pooling_mode"]
    modes = [modes] if isinstance(modes, str) else modes
    flags = {key: mode in modes for mode, key in OLD_KEYS.items()}
    path.write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')


def opened(folder: Path, **options: Any) -> SentenceTransformer:
    """A folder in sentence-transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)


def encoded(model: SentenceTransformer, texts: Iterable[str] = TEXTS, **options: Any) -> NDArray[Any]:
    """Embeddings, [texts, width]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(model.encode(list(texts), show_progress_bar=False, **options))


def embedded(bundle: Bundle, texts: Iterable[str] = TEXTS) -> NDArray[Any]:
    """What a bundle makes of texts, with its own tokenizer."""
    inputs = TextCodec(bundle).encode(list(texts)).inputs
    return bundle.run(inputs)["sentence_embedding"]
