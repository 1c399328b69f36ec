"""Commands as people meet them, in a process of their own or in this one; conftest.py has the fixture ``call``."""

import os
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


Call = Callable[..., Ended]  # with arguments of the command line
