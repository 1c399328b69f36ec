"""Write files atomically, and clean up after killed writers.

Unfinished files lie in a private folder: beside their destination, or among the system's temporary files. The writer
holds a lock in it, which ends with its process. The next writer takes folders without a held lock, restores what had
been moved aside, and removes the rest. Without such locks, as on Windows, leftovers stay.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from platform import node
from tempfile import gettempdir, mkdtemp

from coda_ops.errors import CodaError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

PREFIX = ".coda-partial-"
# Inside: the lock, what is written, and what had the place before where two folders cannot change places in one step.
_LOCK, _CONTENT, _MOVED_ASIDE = "lock", "new", "old"
_MODEL_FILES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin", ".pt")
_LONG_AGO = 86400  # seconds after which a lock of another machine counts as free where ours says so
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)  # file systems that cannot sync them


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """An empty folder of this process alone, removed with the block; what killed processes left there is removed first.

    Args:
        parent: beside what the folder lies, by default the system's temporary files.
    """
    parent = Path(gettempdir()) if parent is None else parent
    remove_leftovers(parent)
    folder, lock = _make(parent)
    try:
        (folder / _CONTENT).mkdir()
        yield folder / _CONTENT
    finally:
        try:
            _clear(folder)
        finally:
            os.close(lock)


def beside(content: Path) -> Path:
    """Where to move what a private folder is to take the place of; it comes back if that place is empty at the end."""
    aside = content.parent / _MOVED_ASIDE
    aside.mkdir()
    return aside


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` when the block succeeds, and vanishes when it does not.

    A link stays, and what it leads to is replaced. What is no plain file, such as /dev/stdout, is written as it is.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    with private_folder(path.parent) as folder:
        new = folder / path.name
        yield new
        if path.exists():
            shutil.copymode(path, new)
        sync(new)
        new.replace(path)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all."""
    with replacing_file(path) as new:
        new.write_text(text, "utf-8")


def check_result_file(path: Path, first: bytes) -> None:
    """Refuse, before minutes of work, a file that could not be written after them, or one that is no earlier result.

    Args:
        path: where the result will go.
        first: what results of this kind begin with.

    Raises:
        CodaError: its folder does not exist, or something else is there.
    """
    if not path.absolute().parent.is_dir():
        raise CodaError(f"{path.parent} does not exist: make it, or write {path.name} elsewhere")
    if path.is_dir():
        raise CodaError(f"{path} is a folder: name a file in it")
    if path.is_file():
        with path.open("rb") as file:
            begins = file.read(64).lstrip()
        if begins and not begins.startswith(first):
            raise CodaError(f"{path} exists and is no earlier result: remove it, or write elsewhere")


def may_have_no_end(path: Path) -> bool:
    """Whether it is a pipe, a device or a socket."""
    return path.exists() and not (path.is_file() or path.is_dir())


def check_plain(path: Path) -> None:
    """Refuse what may have no end where a model is read.

    Args:
        path: it, or its folder, in which all that libraries read by its name is looked at.

    Raises:
        CodaError: names the first.
    """
    inside = (one for pattern in ("*", "*/*") for one in path.glob(pattern) if one.suffix in _MODEL_FILES)
    for one in (path, *inside):
        if may_have_no_end(one):
            raise CodaError(f"{one} is a pipe, a device or a socket, and is not read: put a file in its place")


def remove_leftovers(parent: Path) -> None:
    """Put back what killed writers had moved aside in a folder, and remove what else they left there."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, or gone by now
            _remove_leftover(folder)


def _remove_leftover(folder: Path) -> None:
    if folder.is_symlink() or not _is_mine(folder):
        return
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        folder.rmdir()  # ended before the lock was made; with anything in it, it is not ours
        return
    except AttributeError:  # no such flags on Windows, and no such locks
        return
    try:
        said = os.read(lock, 256)
        here = said == _machine()
        if not said:  # a lock says where it is from before anything lies beside it
            here = {path.name for path in folder.iterdir()} == {_LOCK}
            if not here:
                return
        if try_lock(lock) and (here or time.time() - os.fstat(lock).st_mtime > _LONG_AGO):
            _clear(folder)
    finally:
        os.close(lock)


def _is_mine(folder: Path) -> bool:
    """Whether this user made a folder; of another user's nothing is put anywhere."""
    return not hasattr(os, "geteuid") or folder.stat().st_uid == os.geteuid()


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(mkdtemp(prefix=PREFIX, dir=parent))
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if try_lock(lock) is not False and (folder / _LOCK).exists():
                os.write(lock, _machine())
                os.fsync(lock)
                return folder, lock
            os.close(lock)
        except FileNotFoundError:  # another process took it for a leftover before it was locked
            continue
        except BaseException:
            _clear(folder)
            raise


def _clear(folder: Path) -> None:
    """Remove a private folder, its lock last."""
    aside = folder / _MOVED_ASIDE
    for kept in aside.iterdir() if _is_folder(aside) else ():
        place = folder.parent / kept.name
        if _is_folder(kept) and not os.path.lexists(place):
            kept.rename(place)
    shutil.rmtree(aside, ignore_errors=True)  # of a link it removes nothing
    shutil.rmtree(folder / _CONTENT, ignore_errors=True)
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {_LOCK}:  # or else something in it cannot be removed
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _is_folder(path: Path) -> bool:
    """Whether it is one itself, no link to one: whoever wrote a link may mean somebody else's folder."""
    return path.is_dir() and not path.is_symlink()


def try_lock(file: int) -> bool | None:
    """Lock an open file if nobody else holds it; ``None`` where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def wait_for_lock(file: int) -> None:
    """Lock an open file when its holder lets go of it."""
    fcntl.flock(file, fcntl.LOCK_EX)


def _machine() -> bytes:
    """What tells machines that share a file system apart, and not the containers of one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return node().encode()


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all in it, is on the disk."""
    if not path.is_dir():
        _sync(path)
        return
    for folder, _, files in os.walk(path):
        for name in files:
            _sync(Path(folder, name))
        sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "nt":  # which opens no folders
        return
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(file)
