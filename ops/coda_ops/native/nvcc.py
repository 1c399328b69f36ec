"""How the CUDA library is compiled: where nvcc is, and what it is called with."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# Compute capabilities that the library has code for; cards newer than the last one compile its PTX when they load it.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
INSTALL = 'pip install "coda-compile[cuda-build]", or the CUDA toolkit with nvcc on PATH or in CUDA_HOME'
_SOURCES = ("launch.cu", "operators.cc")


def find() -> Path | None:
    """nvcc: on PATH, in ``CUDA_HOME``, or from NVIDIA's packages in this environment."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    spec = find_spec("nvidia")
    for package in (spec.submodule_search_locations or []) if spec is not None else []:
        homes += sorted(Path(package).glob("cu[0-9]*"), reverse=True)
    folders = [os.environ.get("PATH", os.defpath), *(str(home / "bin") for home in homes)]
    found = next((found for folder in folders if (found := shutil.which("nvcc", path=folder))), None)
    return Path(found) if found is not None else None


def architectures(nvcc: Path) -> tuple[int, ...]:
    """Those of ``ARCHITECTURES`` that this nvcc knows."""
    done = subprocess.run([str(nvcc), "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = set(done.stdout.split())
    return tuple(number for number in ARCHITECTURES if f"compute_{number}" in known)


def command(
    nvcc: Path, sources: Path, include: Path, output: Path, numbers: Sequence[int], *, cudart: Path | None = None
) -> list[str]:
    """The command that compiles the library.

    Args:
        sources: folder of its files.
        include: folder of onnxruntime's C++ headers.
        output: the library.
        numbers: compute capabilities to compile for; the last one's PTX comes along.
        cudart: a shared library of CUDA's runtime to be loaded with it; by default the static one becomes part of it.
    """
    code = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    code.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    host = ["-Xcompiler=/MD"]
    if sys.platform != "win32":
        host = [
            "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-static-libstdc++,-static-libgcc",
            f"-Xlinker=--no-undefined,--version-script={sources.parent / 'src' / 'exports.map'},-s",
            f"-L{nvcc.parent.parent / 'lib'}",  # NVIDIA's packages; nvcc itself looks into lib64
        ]
    return [
        *(str(nvcc), "-shared", "-std=c++17", "-O3", "--threads=0"),
        *(["-cudart=static"] if cudart is None else ["-cudart=none", f"-Xlinker={cudart}"]),
        *(*host, *code, f"-isystem={include}", "-o", str(output)),
        *(str(sources / name) for name in _SOURCES),
    ]
