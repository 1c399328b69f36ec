"""Commands as people meet them, in a process of their own or in this one; conftest.py has the fixture ``call``."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT = {**os.environ, "COLUMNS": "200"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def refused(self, status: int = 1) -> str:
        """The one sentence of a command that failed."""
        assert self.status == status, self
        assert "Traceback" not in self.err + self.out
        (line,) = self.err.strip().splitlines()
        assert line.startswith("coda-compile: ")
        return line.removeprefix("coda-compile: ")

    def worked(self) -> str:
        assert (self.status, self.err) == (0, "")
        return self.out


def whole(*arguments: str, cwd: Path, **options: Any) -> Ended:
    """A process of its own."""
    command = [sys.executable, "-m", "coda_compile", *arguments]
    done = subprocess.run(command, capture_output=True, cwd=cwd, env=ENVIRONMENT, **options)
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


# What a program begins with that is interrupted: ``wait`` says a line and waits.
_WAITING = """
import signal, sys, time
from coda_compile.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup starts with this one

def wait(line):
    print(line, flush=True)
    while True:  # signal.pause() would miss a signal that comes just before it
        time.sleep(0.1)
"""


def interrupted(number: signal.Signals, program: str, look: Callable[[str], None], **options: Any) -> Ended:
    """How a program ends that is sent a signal while it waits, after a look at the line that it said."""
    command = [sys.executable, "-c", _WAITING + program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stdout is not None
            look(process.stdout.readline().removesuffix("\n"))
            process.send_signal(number)
            out, err = process.communicate()
        except BaseException:
            process.kill()  # or leaving the block would wait for it
            raise
    return Ended(process.returncode, out, err)


Call = Callable[..., Ended]  # with arguments of the command line
