"""Where the baseline comes from: a bundle, or a git ref and the command that builds one there."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coda_compile.bench.machine import Machine, this_machine
from coda_compile.errors import CodaError
from coda_ops.files import private_folder
from coda_ops.records import read_record
from coda_targets.manifest import MANIFEST

OUTPUT_VARIABLE = "CODA_OUTPUT"
_GROUPS = hasattr(os, "killpg")


class BaselineError(CodaError):
    """A baseline that cannot be had."""


@dataclass(frozen=True)
class _Figures:
    """What every file of measured figures has: those of a benchmark and those of an earlier check."""

    machine: Machine


@contextmanager
def baseline_bundle(against: str, command: str | None, repository: Path) -> Iterator[Path]:
    """The folder of the baseline's bundle, for as long as the block lasts.

    Args:
        against: a bundle's folder; or, with a command, a git ref.
        command: for the shell, run at the top of a checkout of the ref; it writes a bundle to ``$CODA_OUTPUT``.
        repository: a folder inside the git repository.

    Raises:
        BaselineError: no such bundle or ref, figures instead of a bundle, or a command that fails or writes nothing.
    """
    if command is not None:
        with _built(against, command, repository) as bundle:
            yield bundle
        return
    path = Path(against)
    if path.is_file():
        raise BaselineError(_about_figures(path))
    if not path.exists():
        raise BaselineError(
            f"there is no bundle {against}: give a bundle's folder, or a git ref with --build-baseline COMMAND"
        )
    yield path


def _about_figures(path: Path) -> str:
    """Why a file is no baseline; figures of an earlier check or benchmark name their machine."""
    remedy = "give the baseline's bundle"
    try:
        figures = read_record(path, _Figures, what="file of figures", remedy=remedy)
    except CodaError:
        return f"{path} is a file, not a bundle folder: {remedy}"
    differences = this_machine().differences(figures.machine)
    if differences:
        return (
            f"{path} was measured on another machine ({'; '.join(differences)}) and figures are never compared across "
            f"machines: {remedy}"
        )
    return (
        f"{path} holds figures of another time, which drift alone makes differ: {remedy}, and both are timed in turns"
    )


@contextmanager
def _built(ref: str, command: str, repository: Path) -> Iterator[Path]:
    top = Path(_git(repository, "rev-parse", "--show-toplevel", refused=f"{repository} is in no git repository"))
    commit = _git(
        top,
        *("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"),
        refused=f"git knows no commit {ref!r} here: fetch it first, with {_fetching(top, ref)}",
    )
    with private_folder() as folder:
        tree, bundle, log = (folder / part for part in ("tree", "bundle", "log"))
        try:
            _git(
                top, "worktree", "add", "--detach", "--quiet", str(tree), commit, refused=f"git cannot check out {ref}"
            )
            _run(command, tree, bundle, log, ref)
            if not (bundle / MANIFEST).is_file():
                raise BaselineError(
                    f"the command of --build-baseline ended well at {ref} but wrote no bundle to ${OUTPUT_VARIABLE}"
                )
            yield bundle
        finally:
            remove = ["git", "worktree", "remove", "--force", "--force", str(tree)]  # twice: even one half made
            subprocess.run(remove, cwd=top, capture_output=True)


def _fetching(top: Path, ref: str) -> str:
    """The command that brings a ref into a clone, a shallow one included, which follows one branch alone."""
    remote, _, branch = ref.partition("/")
    if branch and remote in _git(top, "remote", refused=f"git names no remotes of {top}").splitlines():
        return f"git fetch {remote} {branch}:refs/remotes/{ref}"
    if re.fullmatch("[0-9a-f]{7,64}", ref):
        return f"git fetch origin {ref}"
    return f"git fetch origin tag {ref} where it is a tag, and git fetch origin {ref}:{ref} where it is a branch"


def _git(folder: Path, *arguments: str, refused: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise BaselineError("git is not installed: install it, or give a bundle as the baseline") from None
    if done.returncode != 0:
        raise BaselineError(f"{refused}{_said(done.stderr)}")
    return done.stdout.strip()


def _run(command: str, tree: Path, bundle: Path, log: Path, ref: str) -> None:
    """Run the user's command; with an interrupt, what it started ends too."""
    environment = {**os.environ, OUTPUT_VARIABLE: str(bundle)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            shell=True,
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=_GROUPS,
        )
        try:
            status = process.wait()
        except BaseException:
            if _GROUPS:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            raise
    if status != 0:
        said = _said(log.read_text("utf-8", errors="replace"))
        raise BaselineError(f"the command of --build-baseline failed at {ref} with status {status}{said}")


def _said(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
