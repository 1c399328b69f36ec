"""Errors of the compiler, and the one place that turns exceptions of other libraries into sentences."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from coda_ops.errors import CodaError, CodaWarning, OptionError

__all__ = [
    "CodaError",
    "CompileError",
    "CompileWarning",
    "MissingDependencyError",
    "OptionError",
    "OutputError",
    "VerificationError",
    "as_sentences",
]

# Optional libraries, by the extra that brings them.
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "huggingface_hub", "safetensors", "onnx_ir", "onnxscript"), "torch"),
    "psutil": "bench",
    **dict.fromkeys(("jinja2", "markupsafe", "plotly"), "report"),
    "scipy": "train",
    **dict.fromkeys(("sklearn", "threadpoolctl"), "ood"),
    "peft": "peft",
    "adapters": "adapters",
}
# How libraries say that a file could not be written whole: some, which quote the system, torch, and onnxruntime.
_FULL = (
    os.strerror(errno.ENOSPC),
    os.strerror(errno.EDQUOT),
    "] . unexpected pos ",
    "PytorchStreamWriter",
    "Failed to write :",
)


class CompileError(CodaError):
    """A model that cannot be compiled as asked."""


class CompileWarning(CodaWarning):
    """Something of the user's that a bundle goes without."""


class OutputError(CodaError):
    """A bundle that cannot be written where it should go."""


class VerificationError(CodaError):
    """A compiled model that does not compute what its original does."""


class MissingDependencyError(CodaError):
    """An optional library that is not installed."""


@contextmanager
def as_sentences() -> Iterator[None]:
    """Map what other libraries raise onto errors that tell the user what to do."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in EXTRAS:
            raise
        install = f'pip install "coda-compile[{EXTRAS[name]}]"'
        raise MissingDependencyError(f"this needs {name}, which is not installed: {install}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(f" writing {error.filename}" if error.filename else "") from None
        if not error.strerror and _says_full(error):  # as copytree lists what became of each file
            raise _full() from None
        if isinstance(error, BrokenPipeError) or not error.strerror:
            raise
        where = f" for {error.filename}" if error.filename else ""
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OutputError(f"no permission{where}: choose another folder") from None
        raise OutputError(f"the operating system says '{error.strerror}'{where}; nothing was kept") from None
    except MemoryError:
        raise CompileError("out of memory: close other programs or use a machine with more of it") from None
    except Exception as error:
        if isinstance(error, CodaError) or not _says_full(error):
            raise
        raise _full() from None


def _says_full(error: Exception) -> bool:
    return any(sign in str(error) for sign in _FULL)


def _full(where: str = "") -> OutputError:
    return OutputError(f"no space left on the disk{where}: free some and try again; nothing was kept")
