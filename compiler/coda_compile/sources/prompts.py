"""Prompts of sentence-transformers: the caller chooses one, so a default prompt is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coda_compile.errors import CompileError
from coda_models.errors import UnsupportedModelError
from coda_ops.errors import shown

ABOUT = "config_sentence_transformers.json"


def check_prompts(path: Path, about: Mapping[str, Any]) -> dict[str, str | None]:
    """Prompts by name, of a file of embedders and cross-encoders alike.

    Raises:
        UnsupportedModelError: one of them goes in front of every text.
        CompileError: they are no texts.
    """
    prompts = about.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise CompileError(f"{path} is damaged: prompts should be texts by name")
    default = about.get("default_prompt_name")
    if default is not None and prompts.get(str(default)):
        raise UnsupportedModelError(
            f"{path} puts the prompt {shown(default)} in front of every text (default_prompt_name), and a bundle takes "
            "texts as they are: set it to null there, and put the prompt in front of the texts that you give"
        )
    return prompts
