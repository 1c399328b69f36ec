"""A run's private folder: gone with the run, found again by the same one, and refused to every other."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from coda_models.errors import CheckpointError
from coda_models.training.run_folder import run_folder


def leave(folder: Path, identity: str = "this one") -> None:
    """A run that ends in the middle, with something done."""
    with suppress(KeyboardInterrupt), run_folder(folder, identity):
        (folder / "done").write_text("half")
        raise KeyboardInterrupt


def refused(folder: Path, identity: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message), run_folder(folder, identity):
        pass


def test_it_goes_with_a_run_that_ends(tmp_path: Path):
    with run_folder(tmp_path / "run", "this one") as folder:
        assert folder == tmp_path / "run"
        (folder / "done").write_text("half")
    assert list(tmp_path.iterdir()) == []


def test_it_goes_with_a_run_that_has_done_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path / "run", "this one"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_finds_it_and_another_does_not(tmp_path: Path):
    leave(tmp_path / "run")
    with (
        pytest.raises(CheckpointError, match=r"run holds what a run with other options"),
        run_folder(tmp_path / "run", "another"),
    ):
        pass
    with run_folder(tmp_path / "run", "this one") as folder:
        assert (folder / "done").read_text() == "half"


def test_what_is_somebody_elses_is_refused_and_stays(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("precious")
    for place in (tmp_path, tmp_path / "notes.txt"):
        refused(place, "this one", "holds something else than an interrupted run: move it elsewhere$")
    assert (tmp_path / "notes.txt").read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_two_runs_at_once_do_not_share_it(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from coda_models.training.run_folder import run_folder\n"
        "with run_folder(Path('run'), 'this one'): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        refused(tmp_path / "run", "this one", "another process is at work in")
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
