"""Replace a folder atomically: whenever the process ends, either the old folder or the new one is there, complete."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from coda_ops.files import beside, private_folder, sync, sync_folder, try_lock, wait_for_lock
from coda_targets.manifest import MANIFEST

Stage = Callable[[str], AbstractContextManager[object]]
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_RENAME_SWAP = 2  # of macOS
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def replacing(folder: Path, stage: Stage = nullcontext, *, held: bool = False) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when the block succeeds, and vanishes when it does not.

    Of several at once the last one wins, whole; one that replaces a bundle waits for whoever has ``locked`` it.

    Args:
        folder: absolute, no link; whatever is there goes.
        stage: called with a stage's name where it waits, gives a context that lasts as long as it waits.
        held: the caller has ``locked`` it.
    """
    with private_folder(folder.parent) as new:
        yield new
        sync(new)
        with nullcontext() if held or not (folder / MANIFEST).is_file() else locked(folder, stage):
            _put(new, folder)


@contextmanager
def locked(folder: Path, stage: Stage = nullcontext) -> Iterator[None]:
    """Keep other writers from a bundle that is read, changed and replaced; where there are no locks, nothing does.

    Args:
        folder: of the bundle.
        stage: called with a stage's name where another writer has it, gives a context that lasts as long as it does.

    Raises:
        OSError: there is no bundle, or none that may be written.
    """
    manifest = folder / MANIFEST
    while True:
        file = os.open(manifest, os.O_RDWR)
        try:
            if try_lock(file) is False:
                with stage("wait for another coda-compile"):
                    wait_for_lock(file)
            if os.path.samestat(os.fstat(file), manifest.stat()):  # not replaced while it was waited for
                yield
                return
        finally:
            os.close(file)


def _put(new: Path, folder: Path) -> None:
    """Move ``new`` to ``folder``; an older one takes its place, or lies beside it."""
    exchanged = False
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        exchanged = exchange(new, folder)
        if not exchanged:
            folder.rename(beside(new) / folder.name)
            new.rename(folder)
    try:
        sync_folder(folder.parent)
    except OSError:
        if exchanged:
            exchange(new, folder)
        else:
            folder.rename(new)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the file system cannot."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        status = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        status = libc.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
