"""Files are written whole or not at all, and what killed writers leave is removed: nothing else ever is."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coda_ops import CodaError, files
from coda_ops.files import (
    PREFIX,
    check_plain,
    check_result_file,
    private_folder,
    remove_leftovers,
    replacing_file,
    write_text,
)


def kill_inside(parent: Path, script: str = "") -> Path:
    """A private folder whose process was killed."""
    code = f"""
import os, signal, sys
from pathlib import Path
from coda_ops.files import check_plain, private_folder, replacing_file
with private_folder(Path({str(parent)!r})) as folder:
    (folder / "gigabytes").write_text("half")
    {script}
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode < 0
    return next(parent.glob(f"{PREFIX}*"))


def test_private_folder_is_empty_and_goes(tmp_path: Path):
    with private_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "a").mkdir()
        (folder / "a" / "b").write_text("")
    assert list(tmp_path.iterdir()) == []


def test_temporary_one_is_nobody_elses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with private_folder() as folder:
        assert folder.parent.parent == tmp_path
        assert folder.parent.stat().st_mode & 0o077 == 0


def test_leftovers_of_a_killed_process_are_removed_by_the_next(tmp_path: Path):
    left = kill_inside(tmp_path)
    assert (left / "new" / "gigabytes").is_file()
    with private_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder.parent]


def test_folder_of_a_living_process_is_left_alone(tmp_path: Path):
    with private_folder(tmp_path) as first:
        with private_folder(tmp_path) as second:
            assert first.parent != second.parent
        remove_leftovers(tmp_path)
        assert first.is_dir()


@pytest.mark.parametrize(("age", "left"), [(0, True), (90000, False)])
def test_leftovers_of_another_machine_are_removed_once_they_are_old(tmp_path: Path, age: int, left: bool):
    """Not every file system tells machines of each other's locks."""
    folder = kill_inside(tmp_path)
    (folder / "lock").write_text("another machine")
    then = time.time() - age
    os.utime(folder / "lock", (then, then))
    remove_leftovers(tmp_path)
    assert folder.exists() == left


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = kill_inside(tmp_path)
    monkeypatch.setattr(files, "fcntl", None)
    with private_folder(tmp_path):
        pass
    assert [folder] == list(tmp_path.iterdir())


def test_what_only_looks_like_ours_is_left_alone(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").write_text("")
    (tmp_path / f"{PREFIX}link").symlink_to("elsewhere")
    (tmp_path / f"{PREFIX}file").write_text("precious")
    (tmp_path / f"{PREFIX}folder").mkdir()
    (tmp_path / f"{PREFIX}folder" / "notes").write_text("precious")
    (tmp_path / f"{PREFIX}linked").mkdir()
    (tmp_path / f"{PREFIX}linked" / "lock").symlink_to("../elsewhere/lock")
    (tmp_path / ".b.partial-7").mkdir()
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_things_in_a_leftover_are_left_alone(tmp_path: Path):
    folder = kill_inside(tmp_path)
    (folder / "notes").write_text("precious")
    remove_leftovers(tmp_path)
    assert (folder / "notes").read_text() == "precious"
    assert not (folder / "new").exists()


@pytest.mark.parametrize("taken", [True, False])
def test_what_was_moved_aside_comes_back_where_its_place_is_empty(tmp_path: Path, taken: bool):
    kill_inside(tmp_path, 'b = folder.parent / "old" / "b"; b.mkdir(parents=True); (b / "c").write_text("old")')
    if taken:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "c").write_text("new")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b" / "c").read_text() == ("new" if taken else "old")


@pytest.mark.parametrize("lock", ["", None])
@pytest.mark.parametrize("linked", ["old", "old/home", "new"])
def test_no_link_in_a_leftover_is_followed(tmp_path: Path, linked: str, lock: str | None):
    """A stranger's archive may hold what looks like one."""
    home, archive = tmp_path / "home", tmp_path / "archive"
    (home / "letters").mkdir(parents=True)
    archive.mkdir()
    left = kill_inside(archive)
    (left / "new" / "gigabytes").unlink()
    (left / "new").rmdir()
    (left / linked).parent.mkdir(exist_ok=True)
    (left / linked).symlink_to(home)
    if lock is not None:
        (left / "lock").write_text(lock)
    remove_leftovers(archive)
    assert sorted(path.name for path in home.rglob("*")) == ["letters"]
    assert [path for path in archive.iterdir() if path != left] == []


def test_leftover_with_an_empty_lock_holds_nothing_of_ours(tmp_path: Path):
    """A lock says where it is from before anything lies beside it."""
    left = kill_inside(tmp_path, 'b = folder.parent / "old" / "b"; b.mkdir(parents=True)')
    (left / "lock").write_text("")
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(left / "old")
    shutil.rmtree(left / "new")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftover_of_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = kill_inside(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    remove_leftovers(tmp_path)
    assert (left / "new" / "gigabytes").is_file()


def test_file_is_replaced_whole(tmp_path: Path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    with replacing_file(tmp_path / "a") as new:
        new.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_file_survives_what_fails(tmp_path: Path):
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with replacing_file(tmp_path / "a") as new:
            new.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_link_stays_a_link(tmp_path: Path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "link").symlink_to("a")
    write_text(tmp_path / "link", "new é")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text("utf-8") == "new é"


def test_pipe_is_written_as_it_is(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_text(tmp_path / "pipe", "through")
        assert reader.communicate()[0] == b"through"
    assert (tmp_path / "pipe").is_fifo()
    write_text(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(("content", "first"), [(b"", b"{"), (b'\n {"a": 1}', b"{"), (b"<?xml", b"<")])
def test_earlier_result_may_be_written_over(tmp_path: Path, content: bytes, first: bytes):
    (tmp_path / "a").write_bytes(content)
    check_result_file(tmp_path / "a", first)
    check_result_file(tmp_path / "new", first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pt", r"model\.pt exists and is no earlier result: remove it, or write elsewhere"),
        ("folder", r"folder is a folder: name a file in it"),
        ("nowhere/a", r"nowhere does not exist: make it, or write a elsewhere"),
    ],
)
def test_anything_else_may_not(tmp_path: Path, name: str, message: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.pt").write_bytes(b"PK\3\4")
    with pytest.raises(CodaError, match=message):
        check_result_file(tmp_path / name, b"{")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_model_is_made_of_files(tmp_path: Path, name: str):
    (tmp_path / "1_Pooling").mkdir()
    os.mkfifo(tmp_path / "log")  # which nobody reads
    (tmp_path / "absent.json").symlink_to(tmp_path / "nowhere")
    check_plain(tmp_path)
    check_plain(tmp_path / "nowhere")
    os.mkfifo(tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CodaError, match=rf"{name} is a pipe, a device or a socket, and is not read"):
            check_plain(path)
