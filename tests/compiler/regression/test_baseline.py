"""Baselines from git: the ref's own tree, the user's command, and nothing left behind."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from coda_compile.bench.machine import this_machine
from coda_compile.regression import baseline as module
from coda_compile.regression.baseline import BaselineError, baseline_bundle
from coda_targets import Bundle


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repository(compiled: Bundle, tmp_path: Path) -> Path:
    """A repository whose tag ``v1`` holds a bundle and whose work tree holds none."""
    folder = tmp_path / "repository"
    shutil.copytree(compiled.folder, folder / "released")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    git(folder, "tag", "v1")
    shutil.rmtree(folder / "released")
    git(folder, "commit", "--quiet", "-a", "-m", "two", "--allow-empty")
    return folder


def test_a_bundle_is_taken_as_it_is(compiled: Bundle):
    with baseline_bundle(str(compiled.folder), None, Path()) as folder:
        assert folder == compiled.folder


def test_a_ref_is_built_in_a_tree_of_its_own_which_goes_with_the_block(repository: Path):
    with baseline_bundle("v1", 'cp -r released "$CODA_OUTPUT"', repository) as folder:
        Bundle(folder).check()
        assert len(git(repository, "worktree", "list").splitlines()) == 2
    assert not folder.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("ref", "command", "message"),
    [
        (
            "v2",
            "true",
            r"git knows no commit 'v2' here: fetch it first, with git fetch origin tag v2 where it is a tag,",
        ),
        (
            "up/main",
            "true",
            r"git knows no commit 'up/main' here: fetch it first, with git fetch origin tag up/main wh",
        ),
        ("1234abc", "true", r"git knows no commit '1234abc' here: fetch it first, with git fetch origin 1234abc"),
        ("--all", "true", r"git knows no commit '--all' here"),
        ("v1", "true", r"ended well at v1 but wrote no bundle to \$CODA_OUTPUT"),
        ("v1", "echo first >&2; echo the reason >&2; exit 7", r"failed at v1 with status 7: the reason$"),
        ("v1", "exit 7", r"failed at v1 with status 7$"),
        ("v1", 'mkdir "$CODA_OUTPUT"', r"wrote no bundle"),
    ],
)
def test_what_cannot_be_built_is_told_and_cleaned_up(repository: Path, ref: str, command: str, message: str):
    with pytest.raises(BaselineError, match=message), baseline_bundle(ref, command, repository):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("ref", "fetched"), [("origin/work/a", "origin/work/a"), ("v1", "tag"), ("work/a", "branch"), ("commit", "commit")]
)
def test_what_to_fetch_into_a_shallow_clone_is_said_as_it_works(
    repository: Path, tmp_path: Path, ref: str, fetched: str
):
    """As actions/checkout makes it: it knows one branch, and no tags of another."""
    git(repository, "branch", "work/a", "v1")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "newer")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    clone = tmp_path / "clone"
    git(repository, "clone", "--quiet", "--depth", "1", repository.as_uri(), str(clone))
    if ref == "commit":
        ref = git(repository, "rev-parse", "v1").strip()
    with pytest.raises(BaselineError) as refused, baseline_bundle(ref, "true", clone):
        pass
    commands = re.findall(r"git (fetch .+?)(?: where it is a (tag|branch)|$)", str(refused.value).split("; ")[0])
    command = next(words for words, kind in commands if kind in ("", fetched))
    git(clone, *command.split())
    with baseline_bundle(ref, 'cp -r released "$CODA_OUTPUT"', clone) as folder:
        Bundle(folder).check()


def test_an_interrupt_ends_the_command_and_cleans_up(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Interrupted(subprocess.Popen[bytes]):
        waits = 0

        def wait(self, timeout: float | None = None) -> int:
            if self.args == command and not Interrupted.waits:
                Interrupted.waits += 1
                raise KeyboardInterrupt
            return super().wait(timeout)

    command = f"sleep 60; touch {tmp_path / 'lived'}"
    monkeypatch.setattr(module.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), baseline_bundle("v1", command, repository):
        pass
    monkeypatch.undo()
    assert Interrupted.waits == 1
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert not (tmp_path / "lived").exists()


def test_outside_a_repository_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BaselineError, match="is in no git repository"), baseline_bundle("main", "true", tmp_path):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BaselineError, match="git is not installed"), baseline_bundle("main", "true", tmp_path):
        pass


def test_figures_are_no_baseline(tmp_path: Path):
    here, path = this_machine(), tmp_path / "check.json"
    there = replace(here, cpu="Another CPU", cores=here.cores + 62)
    for machine, message in (
        (here, "holds figures of another time, which drift alone makes differ: give the baseline's bundle"),
        (there, r"was measured on another machine \(CPU: .* here, Another CPU there; cores: .* and figures are never"),
    ):
        path.write_text(json.dumps({"machine": asdict(machine)}))
        with pytest.raises(BaselineError, match=message), baseline_bundle(str(path), None, tmp_path):
            pass


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {}}', '{"machine": {"instruction_sets": [], "cpu": 1}}'])
def test_any_other_file_is_no_baseline_either(tmp_path: Path, text: str):
    path = tmp_path / "file"
    path.write_text(text)
    with (
        pytest.raises(BaselineError, match="is a file, not a bundle folder"),
        baseline_bundle(str(path), None, tmp_path),
    ):
        pass
