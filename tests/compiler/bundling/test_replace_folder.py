"""One folder takes another's place: the old one or the new one is there, whole, whenever a process ends."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coda_compile.bundling import replace_folder
from coda_compile.bundling.replace_folder import exchange, locked, replacing
from coda_compile.errors import OutputError, as_sentences
from coda_ops.files import PREFIX, remove_leftovers, try_lock


def state(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


OLD = {"b/coda.json": "old", "b/data/model": "old model"}
NEW = {"b/data/weights": "new weights", "b/coda.json": "new"}


def replace(folder: Path) -> None:
    with replacing(folder) as new:
        write_new(new)


def write_new(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "weights").write_text("new weights")
    (folder / "coda.json").write_text("new")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "b" / "data").mkdir(parents=True)
    (tmp_path / "b" / "data" / "model").write_text("old model")
    (tmp_path / "b" / "coda.json").write_text("old")
    return tmp_path / "b"


# Where folders change places in one step, and where they cannot.
WAYS = pytest.mark.parametrize("atomic", [pytest.param(True, id="exchange"), pytest.param(False, id="two renames")])


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.getfixturevalue("atomic"):
        monkeypatch.setattr(replace_folder, "exchange", lambda one, other: False)


@WAYS
@pytest.mark.usefixtures("way")
def test_replaced(old: Path, atomic: bool):
    with replacing(old) as new:
        write_new(new)
        assert state(old.parent)["b/coda.json"] == "old"
    assert state(old.parent) == NEW
    assert [path.name for path in old.parent.iterdir()] == ["b"]


def test_folders_change_places(old: Path):
    """On the file system that the tests run on: without it all tests of the exchange test the other way."""
    (old.parent / "c").mkdir()
    assert exchange(old.parent / "c", old)
    assert list(old.iterdir()) == []
    assert (old.parent / "c" / "coda.json").read_text() == "old"


def test_permissions_are_those_of_any_new_folder(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    with replacing(tmp_path / "b") as new:
        write_new(new)
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Kills a process at the k-th of the calls that change something, before or after it, for every k.
_KILLED = """
import os, signal, sys
from pathlib import Path
from coda_compile.bundling import replace_folder
from coda_ops import files
from tests.compiler.bundling.test_replace_folder import NEW, OLD, state, write_new

top, atomic, older = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3] == "True"
os.fsync = lambda file: None  # no test turns the power off, and it takes its time
steps = [(os, name) for name in ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir", "close")]
steps += [(replace_folder, "exchange"), (files, "try_lock")]
calls = 0

def armed(module, name, k, after):
    call = getattr(module, name)
    def step(*arguments, **options):
        global calls
        calls += 1
        now = calls == k
        if now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return call(*arguments, **options)
        finally:  # of a call that fails, too
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, step)

def child(folder, k, after):
    if not atomic:
        replace_folder.exchange = lambda one, other: False
    for module, name in steps:
        armed(module, name, k, after)
    with replace_folder.replacing(folder) as new:
        write_new(new)

old_states = [OLD] if older else [{}]
found, k, ended = [], 0, False
while not ended:
    k += 1
    for after in (False, True):
        folder = top / f"{k}-{after}" / "b"
        folder.parent.mkdir()
        if older:
            for name, text in OLD.items():
                (folder.parent / name).parent.mkdir(exist_ok=True, parents=True)
                (folder.parent / name).write_text(text)
        process = os.fork()
        if process == 0:
            child(folder, k, after)
            os._exit(0)
        ended = os.waitpid(process, 0)[1] == 0
        left = {name: text for name, text in state(folder.parent).items() if not name.startswith(files.PREFIX)}
        between = not atomic and older and left == {}
        files.remove_leftovers(folder.parent)
        recovered = state(folder.parent)
        assert recovered in (*old_states, NEW), (k, after, recovered)
        assert between or left == recovered, (k, after, left, recovered)
        assert [p.name for p in folder.parent.iterdir()] in (["b"], [] if not older else ["b"]), (k, after)
        found.append("new" if recovered == NEW else "old")
        with replace_folder.replacing(folder) as new:
            write_new(new)
        assert state(folder.parent) == NEW
assert found == sorted(found, reverse=True) and {*found} == {"old", "new"}, found
print(len(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("older", [True, False])
@WAYS
def test_killed_at_every_moment(tmp_path: Path, atomic: bool, older: bool):
    command = [sys.executable, "-c", _KILLED, str(tmp_path), str(atomic), str(older)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@WAYS
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("name", "moments"), [("open", 7), ("write", 1), ("fsync", 5), ("rename", 1)])
def test_full_disk_at_every_moment(old: Path, atomic: bool, name: str, moments: int, monkeypatch: pytest.MonkeyPatch):
    """The old folder and one sentence, or, where it fills while the old one is removed, the new one."""
    call, refused = getattr(os, name), 0
    for k in range(100):
        calls: list[int] = []

        def full(*arguments: Any, k: int = k, calls: list[int] = calls, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == k + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            try:
                with as_sentences():
                    replace(old)
            except OutputError as error:
                message = str(error)
            else:
                break
        assert message.startswith("no space left on the disk")
        assert state(old.parent) == OLD
        assert [path.name for path in old.parent.iterdir()] == ["b"]
        refused += 1
    remove_leftovers(old.parent)
    assert state(old.parent) == NEW
    assert refused >= moments


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupt_at_the_exchange(old: Path, when: str, monkeypatch: pytest.MonkeyPatch):
    def interrupted(one: Path, other: Path) -> bool:
        if when == "after":
            assert exchange(one, other)
        raise KeyboardInterrupt

    monkeypatch.setattr(replace_folder, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(old)
    assert state(old.parent) == (NEW if when == "after" else OLD)


@pytest.mark.parametrize("target", ["old", "b"])
def test_interrupt_between_two_renames(old: Path, target: str, monkeypatch: pytest.MonkeyPatch):
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        moved = rename(self, to)
        if target == (to.parent.name if target == "old" else to.name if self.name == "new" else None):
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(replace_folder, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(old)
    assert state(old.parent) == (OLD if target == "old" else NEW)


def test_interrupt_while_the_old_one_is_removed(old: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replace(old)
    assert NEW.items() <= state(old.parent).items()
    remove_leftovers(old.parent)
    assert state(old.parent) == NEW
    assert [path.name for path in old.parent.iterdir()] == ["b"]


def test_what_is_written_is_on_the_disk_before_it_is_put_there(old: Path, monkeypatch: pytest.MonkeyPatch):
    happened: list[str] = []
    fsync, swap = os.fsync, replace_folder.exchange

    def noted(file: int) -> None:
        happened.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    def noted_swap(one: Path, other: Path) -> bool:
        happened.append("exchange")
        return swap(one, other)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(replace_folder, "exchange", noted_swap)
    with replacing(old) as new:
        write_new(new)
    at = happened.index("exchange")
    assert set(happened[:at]) == {"lock", "coda.json", "weights", "data", "new"}
    assert happened[at + 1 :] == [old.parent.name]


@WAYS
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("older", [True, False])
def test_of_two_writers_the_last_one_wins_whole(old: Path, atomic: bool, older: bool):
    if not older:
        old.rename(old.with_name("other"))
    with replacing(old) as first:
        with replacing(old) as second:
            write_new(second)
            (second / "coda.json").write_text("of the second")
        assert (old / "coda.json").read_text() == "of the second"
        write_new(first)
    assert {name: text for name, text in state(old.parent).items() if name.startswith("b/")} == NEW
    assert PREFIX not in "".join(path.name for path in old.parent.iterdir())


def test_writer_waits_for_whoever_holds_the_bundle(old: Path):
    waited, inside = threading.Event(), threading.Event()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        assert name == "wait for another coda-compile"
        waited.set()
        yield

    def write() -> None:
        with replacing(old, stage) as new:
            write_new(new)
        inside.set()

    thread = threading.Thread(target=write)
    with locked(old):
        thread.start()
        assert waited.wait(10)
        assert not inside.is_set()
        assert state(old)["coda.json"] == "old"
        with replacing(old, held=True) as new:
            (new / "coda.json").write_text("changed")
    thread.join(10)
    assert state(old.parent) == NEW


def test_no_lock_is_taken_on_what_was_replaced_meanwhile(old: Path):
    waited, seen = threading.Event(), []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        waited.set()
        yield

    def read() -> None:
        with locked(old, stage), (old / "coda.json").open("r+") as now:
            seen.append((now.read(), try_lock(now.fileno())))

    thread = threading.Thread(target=read)
    with locked(old):
        thread.start()
        assert waited.wait(10)
        with replacing(old, held=True) as new:
            write_new(new)
    thread.join(10)
    assert seen == [("new", False)]  # the lock is on the one that is there
    with locked(old):  # nobody holds it any more
        pass
