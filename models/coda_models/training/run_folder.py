"""The private folder of a run that can be interrupted: the same run goes on from it, and no other touches it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coda_models.errors import CheckpointError
from coda_ops.files import try_lock, write_text

_MARK = "run.txt"


@contextmanager
def run_folder(folder: Path, identity: str) -> Iterator[Path]:
    """A folder that lasts until the block succeeds; whatever ends it otherwise leaves what has been written to it.

    Args:
        folder: new or empty, or what an interrupted run of the same identity left.
        identity: all that the run's result depends on, as text.

    Raises:
        CheckpointError: it holds something else, another run's files, or a run that still goes on.
    """
    mark = folder / _MARK
    if not mark.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{folder} holds something else than an interrupted run: move it elsewhere")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(mark, identity + "\n")
    _check(mark, identity)
    with _locked(mark):
        try:
            yield folder
        except BaseException:
            if not any(path != mark for path in folder.iterdir()):
                shutil.rmtree(folder)  # nothing was done
            raise
        shutil.rmtree(folder)


def _check(mark: Path, identity: str) -> None:
    if mark.read_bytes() != f"{identity}\n".encode():
        raise CheckpointError(
            f"{mark.parent} holds what a run with other options, texts or weights left when it was interrupted: give "
            "those again to go on, or remove the folder"
        )


@contextmanager
def _locked(mark: Path) -> Iterator[None]:
    with mark.open("rb+") as file:
        if try_lock(file.fileno()) is False:
            raise CheckpointError(f"another process is at work in {mark.parent}: wait for it, or end it")
        yield
