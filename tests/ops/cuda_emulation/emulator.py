"""The CUDA kernels on a CPU: compiled by g++ with an emulation of CUDA, and called with numpy arrays."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from coda_ops import native
from coda_ops.capacity import slot_count

HERE = Path(__file__).parent
SOURCES = native.HERE / "cuda"
COMPILER = shutil.which("g++")
_NUMBERS = {np.dtype(np.float32): "put_float", np.dtype(np.float16): "put_half"}


def compile_kernels(folder: Path, faults: dict[str, str] | None = None) -> Path:
    """The kernels as a library in a folder, with texts of them replaced by others."""
    sources = folder / "cuda"
    shutil.copytree(SOURCES, sources)
    for right, wrong in (faults or {}).items():
        (path,) = [one for one in sources.iterdir() if one.read_text("utf-8").count(right) == 1]
        path.write_text(path.read_text("utf-8").replace(right, wrong), "utf-8")
    library = folder / "emulated.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-U_FORTIFY_SOURCE"]
    command = [str(COMPILER), *flags, "-shared", "-fPIC", "-DCODA_EMULATED", f"-I{HERE}", f"-I{sources}"]
    files = ["-x", "c++", str(sources / "launch.cu"), str(HERE / "emulated.cc")]
    subprocess.run([*command, *files, "-o", str(library)], check=True, capture_output=True, text=True)
    return library


def address(array):
    """Of an array's first number; of none, null."""
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def guarded(shape, dtype, offset=0):
    """An array amid others' numbers, and a function that tells whether those were left alone.

    offset: of its address from a multiple of 64 bytes, in numbers.
    """
    count, margin = int(np.prod(shape)), 64
    whole = np.frombuffer(bytearray(b"\xa5" * ((count + 2 * margin + 64) * np.dtype(dtype).itemsize)), dtype)
    first = -(whole.ctypes.data // whole.itemsize) % (64 // whole.itemsize) + margin + offset
    before, array, after = whole[:first], whole[first : first + count], whole[first + count :]
    return array.reshape(shape), lambda: set(before.tobytes() + after.tobytes()) == {0xA5}


class Emulator:
    """A library of kernels; every call says whether it was refused, and wrote nowhere else."""

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self._library.most_shared_tokens.restype = ctypes.c_int64

    @property
    def most_shared_tokens(self):
        """The longest row that is kept in shared memory."""
        return self._library.most_shared_tokens()

    def take_turns(self, seed):
        """Draw the order of a block's threads anew."""
        self._library.take_turns(seed)

    def _call(self, name, *arguments, intact):
        """Arrays by their addresses, numbers as they are."""
        status = getattr(self._library, name)(
            *(ctypes.c_int64(one) if isinstance(one, int) else address(one) for one in arguments)
        )
        assert all(one() for one in intact), f"{name} wrote outside of its outputs"
        if status != 0:
            raise ValueError(f"{name} was refused: {status}")

    def route(self, scores, mask, reduction, epsilons):
        """indices, gates, used."""
        batch, tokens = scores.shape
        slots = slot_count(tokens, reduction)
        scores, mask, schedule = (
            np.ascontiguousarray(scores, np.float32),
            np.ascontiguousarray(mask),
            np.array(epsilons),
        )
        made, intact = zip(*(guarded((batch, slots), dtype) for dtype in (np.int64, np.float32, bool)), strict=True)
        sizes = (batch, tokens, slots, reduction.numerator, reduction.denominator)
        self._call("route", scores, mask, *made, *sizes, schedule, len(schedule), intact=intact)
        return made

    def take(self, x, indices, offset=0):
        """TakeTokens, to an address that is off a multiple of 64 bytes by so many numbers."""
        (batch, tokens, width), slots = x.shape, indices.shape[1]
        taken, intact = guarded((batch, slots, width), x.dtype, offset)
        indices, width_bytes = np.ascontiguousarray(indices), width * x.itemsize
        self._call("take", x, indices, taken, batch, tokens, slots, width_bytes, intact=[intact])
        return taken

    def put(self, base, indices, gates, now, before=None, *, in_place=False, offset=0):
        """PutTokens, or PutDifference with what tokens were before."""
        (batch, tokens, width), slots = base.shape, indices.shape[1]
        out, intact = guarded(base.shape, base.dtype, offset)
        if in_place:
            out[...] = base
            base = out
        arrays = (out, base, np.ascontiguousarray(indices), gates, now, before)
        self._call(_NUMBERS[base.dtype], *arrays, batch, tokens, slots, width, intact=[intact])
        return out
