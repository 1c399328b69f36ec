"""Where engines are kept that a provider builds for one model, one card and one version of all that takes part.

Building takes seconds to minutes, so that what was built once is used again. It lies in the user's cache, never in a
bundle. Nothing but the folder's name says what an engine belongs to, so that every part of it stands there.
"""

import ctypes
import hashlib
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import onnxruntime as ort

from coda_ops.distributions import installed_version
from coda_targets.runtimes import Runtime, nvidia

PLACE = "CODA_CACHE"  # environment: the folder of what can be built again
_LIBRARY = "libnvinfer.so.10"


def cache_root() -> Path:
    """The folder that ``CODA_CACHE`` names, or the user's own for caches."""
    named = os.environ.get(PLACE)
    if named:
        return Path(named)
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or usual
    return Path(home).expanduser() / "coda-compile"


def engine_folder(runtime: Runtime) -> Path:
    """Where a runtime keeps what it builds of ``runtime.built_of`` for its device."""
    parts = [ort.__version__, *_versions(runtime), nvidia.device_name(runtime.index)]
    made_by = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(parts)).strip("-")
    profile = hashlib.sha256(str(runtime.profile).encode()).hexdigest()
    return cache_root() / runtime.name / made_by / f"{runtime.built_of[:32]}-{profile[:8]}"


def with_cache(runtime: Runtime) -> Runtime:
    """The same where its provider keeps engines; as it is where it keeps none, or has nowhere to."""
    if not _keeps(runtime):
        return runtime
    folder = engine_folder(runtime)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: what was built is lost, nothing else
        return runtime
    return runtime.with_options({name: value.format(folder) for name, value in runtime.cache_options.items()})


def kept(runtime: Runtime) -> bool:
    """Whether something built is kept for a model."""
    folder = engine_folder(runtime) if _keeps(runtime) else None
    return folder is not None and folder.is_dir() and any(folder.iterdir())


def forget(runtime: Runtime) -> None:
    """Remove what is kept for a model, which may be cut off or damaged."""
    with suppress(OSError):
        shutil.rmtree(engine_folder(runtime))


def _keeps(runtime: Runtime) -> bool:
    return bool(runtime.cache_options and runtime.built_of)


def _versions(runtime: Runtime) -> list[str]:
    """Of the library that builds, as far as it says."""
    if runtime.plugin:
        return [installed_version(name) for name in runtime.distributions]
    with suppress(OSError, AttributeError):
        return [str(ctypes.CDLL(_LIBRARY).getInferLibVersion())]
    return []
