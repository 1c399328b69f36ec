"""Native CPU kernels of the ``ai.coda`` operators: finding and building the library.

A bundle does not need it: the model carries function bodies of standard operators. Once onnxruntime has loaded the
library, its kernels replace the bodies of ``OPERATORS``, in the same file and with the same results.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from coda_ops import catalogue
from coda_ops.errors import CodaError
from coda_ops.files import replacing_file

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / ("coda_ops.dll" if sys.platform == "win32" else "coda_ops.so")
OPERATORS = tuple(operator.name for operator in catalogue.OPERATORS if operator.native)
SWITCH = "CODA_KERNELS"  # environment: auto (the default) or portable
_HEADER = "onnxruntime_cxx_api.h"
_VENDORED = HERE / "include" / "onnxruntime"  # of the oldest release that the kernels are loaded by


class KernelError(CodaError):
    """Native kernels that cannot be built, or are asked for and not there."""


def switched_off() -> bool:
    """Whether the environment asks for function bodies.

    Raises:
        KernelError: it asks for something unknown.
    """
    value = os.environ.get(SWITCH, "auto")
    if value not in ("auto", "portable"):
        raise KernelError(f"{SWITCH} is {value!r}: set it to auto or portable")
    return value == "portable"


def library() -> Path | None:
    """What onnxruntime's ``register_custom_ops_library`` takes; ``None`` where it is not built, or switched off."""
    return None if switched_off() or not LIBRARY.is_file() else LIBRARY


def include_dir(given: Path | None = None) -> Path:
    """The folder of onnxruntime's C++ headers: given, named by ``ORT_INCLUDE_DIR``, or our copy of them."""
    named = given or os.environ.get("ORT_INCLUDE_DIR")
    return Path(named) if named else _VENDORED


def compiler() -> str | None:
    """The C++ compiler that CMake will find."""
    return next(
        (
            found
            for name in (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")
            if name
            if (found := shutil.which(name))
        ),
        None,
    )


def missing(given: Path | None = None) -> str | None:
    """What building lacks here, with what to do about it; ``None`` where nothing is."""
    if compiler() is None:
        return "a C++ compiler is missing: apt-get install g++"
    if not (include_dir(given) / _HEADER).is_file():
        return f"{include_dir(given)} has no {_HEADER}: name the include folder of an onnxruntime release, or none"
    if shutil.which("cmake") is None:
        return "CMake is missing: apt-get install cmake, or pip install cmake"
    return None


def build_kernels(given: Path | None = None) -> Path:
    """Build the library into this package.

    Args:
        given: the folder of onnxruntime's C++ headers, by default found by ``include_dir``.

    Returns:
        The library; an older one is replaced only by one that was built completely.

    Raises:
        KernelError: what is missing, or the compiler's first complaint.
    """
    lacks = missing(given)
    if lacks is not None:
        raise KernelError(f"native kernels cannot be built: {lacks}")
    with tempfile.TemporaryDirectory(prefix="coda-kernels-") as folder:
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        _run(["cmake", *generator, "-S", str(HERE), "-B", folder, f"-DORT_INCLUDE_DIR={include_dir(given)}"])
        _run(["cmake", "--build", folder, "--config", "Release"])
        built = next(Path(folder).rglob(LIBRARY.name))
        try:
            with replacing_file(LIBRARY) as new:
                shutil.copyfile(built, new)
        except PermissionError:
            raise KernelError(f"{HERE} cannot be written: build from an environment of your own") from None
    return LIBRARY


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).splitlines()
        first = next((line.strip() for line in said if "rror" in line), "no reason given")
        raise KernelError(f"native kernels cannot be built, {command[0]} says: {first}")
