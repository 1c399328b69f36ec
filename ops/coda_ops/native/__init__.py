"""Native kernels of the ``ai.coda`` operators: finding and building the libraries, one a kind of processor.

A bundle needs none of them: the model carries function bodies of standard operators. Once onnxruntime has loaded a
library, its kernels replace the bodies of its operators, in the same file and with the same results. A session loads
one library: the kernels of two would pull nodes from one processor to the other.
"""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coda_ops import catalogue
from coda_ops.errors import CodaError, CodaWarning
from coda_ops.files import replacing_file
from coda_ops.native import nvcc

HERE = Path(__file__).resolve().parent
_SUFFIX = ".dll" if sys.platform == "win32" else ".so"
SWITCH = "CODA_KERNELS"  # environment: auto (the default) or portable
_HEADER = "onnxruntime_cxx_api.h"
_VENDORED = HERE / "include" / "onnxruntime"  # of the oldest release that the kernels are loaded by


class KernelError(CodaError):
    """Native kernels that cannot be built, or are asked for and not there."""


class KernelWarning(CodaWarning):
    """Native kernels that are there and cannot be used: bundles run on their function bodies."""


@dataclass(frozen=True)
class Library:
    """The native kernels of one kind of processor.

    Attributes:
        name: in ``LIBRARIES`` and in the catalogue's ``Operator.kernels``.
        processors: that it runs on, for people.
        path: where it is once it is built; what onnxruntime's ``register_custom_ops_library`` takes.
    """

    name: str
    processors: str
    path: Path

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that it has kernels of."""
        return tuple(operator.name for operator in catalogue.OPERATORS if self.name in operator.kernels)


LIBRARIES = {
    library.name: library
    for library in (
        Library("cpu", "CPUs", HERE / f"coda_ops{_SUFFIX}"),
        Library("cuda", "NVIDIA GPUs", HERE / f"coda_ops_cuda{_SUFFIX}"),
    )
}


def switched_off() -> bool:
    """Whether the environment asks for function bodies.

    Raises:
        KernelError: it asks for something unknown.
    """
    value = os.environ.get(SWITCH, "auto")
    if value not in ("auto", "portable"):
        raise KernelError(f"{SWITCH} is {value!r}: set it to auto or portable")
    return value == "portable"


def library(name: str = "cpu") -> Path | None:
    """The file of one of ``LIBRARIES``; ``None`` where it is not built, or kernels are switched off."""
    path = LIBRARIES[name].path
    return None if switched_off() or not path.is_file() else path


def is_cut(path: Path) -> bool:
    """Whether a library of Linux lacks its end. The loader would map it all the same, and end the process as it reads.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":  # of 64 bits, little-endian
        return False  # the loader tells what others are
    (sections,) = struct.unpack_from("<Q", head, 40)  # what they are listed in is the last part of the file
    size, count = struct.unpack_from("<HH", head, 58)
    return bool(path.stat().st_size < sections + size * count)


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


def missing(given: Path | None = None, *, name: str = "cpu") -> str | None:
    """What building one of ``LIBRARIES`` lacks here, with what to do about it; ``None`` where nothing is."""
    if compiler() is None:
        return "a C++ compiler is missing: apt-get install g++"
    if not (include_dir(given) / _HEADER).is_file():
        return f"{include_dir(given)} has no {_HEADER}: name the include folder of an onnxruntime release, or none"
    if name == "cuda":
        return None if nvcc.find() is not None else f"nvcc is missing: {nvcc.INSTALL}"
    if shutil.which("cmake") is None:
        return "CMake is missing: apt-get install cmake, or pip install cmake"
    return None


def build_kernels(given: Path | None = None, *, name: str = "cpu") -> Path:
    """Build one of ``LIBRARIES`` into this package.

    Args:
        given: the folder of onnxruntime's C++ headers, by default found by ``include_dir``.

    Returns:
        The library; an older one is replaced only by one that was built completely.

    Raises:
        KernelError: what is missing, or the compiler's first complaint.
    """
    lacks = missing(given, name=name)
    if lacks is not None:
        raise KernelError(f"native kernels cannot be built: {lacks}")
    path = LIBRARIES[name].path
    with tempfile.TemporaryDirectory(prefix="coda-kernels-") as folder:
        built = (_build_cuda if name == "cuda" else _build_cpu)(Path(folder), include_dir(given), path.name)
        try:
            with replacing_file(path) as new:
                shutil.copyfile(built, new)
        except PermissionError:
            raise KernelError(f"{HERE} cannot be written: build from an environment of your own") from None
    return path


def _build_cpu(folder: Path, include: Path, file_name: str) -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run(["cmake", *generator, "-S", str(HERE), "-B", str(folder), f"-DORT_INCLUDE_DIR={include}"])
    _run(["cmake", "--build", str(folder), "--config", "Release"])
    return next(folder.rglob(file_name))


def _build_cuda(folder: Path, include: Path, file_name: str) -> Path:
    program = nvcc.find()
    numbers = nvcc.architectures(program) if program is not None else ()
    if program is None or not numbers:
        raise KernelError(f"native kernels cannot be built: {program} knows none of our architectures: {nvcc.INSTALL}")
    _run(nvcc.command(program, HERE / "cuda", include, folder / file_name, numbers))
    return folder / file_name


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).splitlines()
        first = next((line.strip() for line in said if "rror" in line), "no reason given")
        raise KernelError(f"native kernels cannot be built, {Path(command[0]).name} says: {first}")
