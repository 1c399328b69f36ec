"""Fetches onnxruntime's CUDA build and CUDA's headers, and builds the stand-in libraries that it runs on.

python -m tests.cuda_stand_in.build    # prints what to set for a process that shall run on the stand-in
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.packages import UnavailableError, alone, installed

from coda_ops import native
from coda_ops.native import nvcc

HERE = Path(__file__).parent
SOURCES = HERE / "src"
CACHE = HERE.parents[1] / "build" / "cuda"
ONNXRUNTIME = "onnxruntime-gpu==1.31.1"
HEADERS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88")
# Each library with its sources and the version that its symbols carry, if any. The first holds what the others share.
LIBRARIES = {
    "libcudart.so.13": ("cudart/*.cpp", True),
    "libcublas.so.13": ("cublas.cpp", True),
    "libcublasLt.so.13": ("cublasLt.cpp", True),
    "libcurand.so.10": ("curand.cpp", True),
    "libcuda.so.1": ("cuda.cpp", False),
    "libcudnn.so.9": ("cudnn.cpp", False),
}
_OF_CUDA = re.compile(r"(__)?cu(da|blas|rand|dnn|[A-Z])\w*")
_LOOKED_UP = re.compile(rb"(?<=\0)cudnn[A-Z]\w+(?=\0)")


class StandInError(Exception):
    """The stand-in lacks what a library needs; the message names it."""


@dataclass(frozen=True)
class StandIn:
    """What a process needs to run onnxruntime's CUDA provider without a GPU.

    Attributes:
        onnxruntime: folder that holds onnxruntime's CUDA build, for PYTHONPATH.
        libraries: folder of the stand-in libraries, for LD_LIBRARY_PATH.
    """

    onnxruntime: Path
    libraries: Path

    @property
    def provider(self) -> Path:
        """onnxruntime's CUDA provider."""
        return self.onnxruntime / "onnxruntime/capi/libonnxruntime_providers_cuda.so"

    def environment(self, **settings: object) -> dict[str, str]:
        """Of a process on the stand-in; ``capability="8.6"`` sets CUDA_STAND_IN_CAPABILITY, see README.md."""
        set_here = {f"CUDA_STAND_IN_{name.upper()}": str(value) for name, value in settings.items()}
        python = os.pathsep.join(filter(None, (str(self.onnxruntime), os.environ.get("PYTHONPATH", ""))))
        return os.environ | {"PYTHONPATH": python, "LD_LIBRARY_PATH": str(self.libraries)} | set_here


def stand_in() -> StandIn:
    """Fetch and build what is not there yet, once for all processes of this checkout.

    Raises:
        UnavailableError: a package or a compiler cannot be had.
        StandInError: onnxruntime needs a symbol that the stand-in lacks.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnavailableError("the CUDA stand-in is for Linux on x86-64")
    for program in ("g++", "nm"):
        if shutil.which(program) is None:
            raise UnavailableError(f"the CUDA stand-in is built by {program}, which is not here")
    with alone(CACHE):
        made = StandIn(installed(CACHE, ONNXRUNTIME), build(installed(CACHE, *HEADERS) / "nvidia/cu13/include"))
        missing = missing_symbols(made.provider, made.libraries)
    if missing:
        raise StandInError(f"{ONNXRUNTIME} needs what {SOURCES} lacks: {', '.join(missing)}")
    return made


def build(headers: Path, sources: Path = SOURCES, cache: Path = CACHE) -> Path:
    """Compile the libraries into a folder named after their sources; give it.

    Raises:
        StandInError: the compiler refuses them; the message is the compiler's.
    """
    files = sorted(path for path in sources.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    folder = cache / f"stand-in-{digest}"
    if folder.is_dir():
        return folder
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, (pattern, versioned) in LIBRARIES.items():
        command = [
            "g++",
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-isystem",
            str(headers),
        ]
        command += [*map(str, sorted(sources.glob(pattern))), "-o", str(part / name), f"-Wl,-soname,{name}"]
        if versioned:
            (part / "versions").write_text(f"{name} {{ global: *; }};\n", "utf-8")
            command.append(f"-Wl,--version-script={part / 'versions'}")
        if name != "libcudart.so.13":
            command += [f"-L{part}", "-Wl,--no-as-needed", "-l:libcudart.so.13"]
        done = subprocess.run([*command, "-ldl"], capture_output=True, text=True)
        if done.returncode:
            raise StandInError(f"g++ cannot build {name}: {done.stderr}")
    (part / "versions").unlink()
    part.rename(folder)
    return folder


def build_kernels(made: StandIn) -> Path:
    """Compile our CUDA kernels for the stand-in's card: a static CUDA runtime would ask a driver that is not there.

    Raises:
        UnavailableError: nvcc is not here.
        StandInError: it refuses them; the message is its own.
    """
    compiler = nvcc.find()
    if compiler is None:
        raise UnavailableError(f"nvcc is missing: {nvcc.INSTALL}")
    sources = native.HERE / "cuda"
    files = sorted(path for folder in (sources, native.HERE / "src") for path in folder.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    library = CACHE / f"coda_ops_cuda-{digest}.so"
    runtime = made.libraries / "libcudart.so.13"
    with alone(CACHE):
        if not library.is_file():
            part = library.with_suffix(".part")
            command = nvcc.command(compiler, sources, native.include_dir(), part, [90], cudart=runtime)
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise StandInError(f"nvcc cannot build the kernels: {done.stderr or done.stdout}")
            part.rename(library)
    return library


def missing_symbols(library: Path, libraries: Path) -> list[str]:
    """What a library takes from CUDA, by linking or by looking it up, that the stand-in lacks."""
    needed = {name for name in _symbols(library, "--undefined-only") if _OF_CUDA.fullmatch(name)}
    looked_up = {name.decode() for name in _LOOKED_UP.findall(library.read_bytes())}
    given = {name for one in LIBRARIES for name in _symbols(libraries / one, "--defined-only")}
    return sorted((needed | looked_up) - given)


def _symbols(library: Path, which: str) -> Iterator[str]:
    """Dynamic symbols, without their versions."""
    listed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        yield line.split()[-1].partition("@")[0]


if __name__ == "__main__":
    made = stand_in()
    print(f"PYTHONPATH={made.onnxruntime} LD_LIBRARY_PATH={made.libraries}")
