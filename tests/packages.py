"""Packages that tests need and the environment that runs them must not have: fetched once, each in a folder of its own."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UnavailableError(Exception):
    """Something cannot be had on this machine; the message says what is missing."""


def installed(cache: Path, *requirements: str) -> Path:
    """A folder that holds packages without what they depend on, for PYTHONPATH.

    Args:
        cache: where it is kept; see ``alone``.

    Raises:
        UnavailableError: pip cannot have them.
    """
    folder = cache / "-".join(requirements).replace("==", "-")
    if folder.is_dir():
        return folder
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    done = subprocess.run([*command, "--target", str(part), *requirements], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(part, ignore_errors=True)
        last = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise UnavailableError(f"{' and '.join(requirements)} cannot be had: {last}")
    part.rename(folder)
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: test workers ask for the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
