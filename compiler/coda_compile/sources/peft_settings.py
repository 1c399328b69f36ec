"""What an ``adapter_config.json`` of PEFT may ask for, checked before PEFT builds or searches anything for it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from coda_compile.errors import CompileError
from coda_models.errors import CheckpointError
from coda_ops.errors import shown

_SIZES = ("r", "init_r", "target_r", "n_frequency", "num_virtual_tokens", "token_dim", "num_layers")
_WHOLE = "LOKR"  # of large r it has whole matrices, so that r is no size
_SECONDS = 20  # in which every pattern should find its modules; what takes minutes takes ages of longer names
_SPECIAL = re.compile(r"[*+?{|]")
# The ways in which PEFT looks for the strings of a configuration among the names of modules.
_SEARCH = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for way in ("%s", r"(^|.*\.)%s($|\..*)", r"(.*\.)?(%s)$", r"(?:^|.*?\.)%s\.(?P<idx>\d+)\."):
        try:
            search = re.compile(way % pattern)
        except re.error:
            continue
        for name in names:
            search.fullmatch(name)
            search.match(name)
"""


def check_sizes(path: Path, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse ranks and lengths that no tensor has.

    Args:
        path: of the configuration.
        plain: what it holds.
        tensors: of the adapter.

    Raises:
        CheckpointError: names the first such setting.
    """
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    ranks = plain.get("rank_pattern")
    sizes = [(name, plain.get(name)) for name in _SIZES if not (name == "r" and plain["peft_type"] == _WHOLE)]
    sizes += [("rank_pattern", value) for value in (ranks.values() if isinstance(ranks, dict) else ())]
    for name, value in sizes:
        if isinstance(value, int | float) and not value <= largest:
            raise CheckpointError(
                f"{path} has {name} {shown(value)}, and the weights beside it have no such size: save the adapter again"
            )


def check_patterns(path: Path, plain: dict[str, Any], names: Iterable[str]) -> None:
    """Refuse regular expressions that take ages to be searched for.

    Python's cannot be interrupted, so another process tries first.

    Args:
        path: of the configuration.
        plain: what it holds.
        names: of the base model's modules.

    Raises:
        CompileError: says which expressions there are.
    """
    patterns = sorted({text for text in _texts(plain) if _SPECIAL.search(text)})
    if not patterns:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SEARCH],
            input=json.dumps([patterns, list(names)]).encode(),
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CompileError(
            f"{path} has patterns that take ages to match, among {shown(patterns)}: list the names of modules instead"
        ) from None


def _texts(plain: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, list):
        for one in plain:
            yield from _texts(one)
    elif isinstance(plain, dict):
        for key, value in plain.items():
            yield key
            yield from _texts(value)
