"""Settings of other libraries, in which every key has a meaning."""

from pathlib import Path
from typing import Any

from coda_models.errors import UnsupportedModelError


def only(path: Path, plain: dict[str, Any], *known: str) -> None:
    """Refuse a setting that nobody here gives a meaning to.

    Raises:
        UnsupportedModelError: names the first.
    """
    if unknown := sorted(set(plain) - set(known)):
        raise UnsupportedModelError(f"{path} sets {unknown[0]!r}, which has no compiled form: save the model without")
