"""One contender: a process that opens a model and runs it when told to.

python -m coda_compile.bench.worker SPEC.json

The specification names an opener of ``coda_compile.bench.openers``, its arguments, the threads and the input files.
Every message is one line of JSON. The first says how long opening took; ``{"input": i, "runs": m}`` is answered by
the seconds of m runs, ``{"peak": true}`` by the most memory that the process ever held. What libraries print goes to
stderr.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from coda_compile.bench import openers
from coda_compile.errors import CodaError
from coda_ops.errors import first_line


def main() -> None:
    """Serve until stdin closes."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        _serve(json.loads(Path(sys.argv[1]).read_text("utf-8")), answers)
    except CodaError as error:
        _say(answers, error=str(error))
    except Exception as error:
        _say(answers, error=f"{type(error).__name__}: {first_line(error)}")


def _end_with_parent() -> None:
    """Have the system end this process with its coordinator, however that dies: asleep it would never notice."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def _serve(spec: dict[str, Any], answers: TextIO) -> None:
    inputs = []
    for path in spec["inputs"]:
        with np.load(path) as arrays:
            inputs.append(dict(arrays))
    began = time.perf_counter()
    prepare = getattr(openers, spec["opener"])(spec["threads"], **spec["arguments"])
    _say(answers, opened=time.perf_counter() - began)
    runs = [prepare(arrays) for arrays in inputs]
    for line in sys.stdin:
        request = json.loads(line)
        if "peak" in request:
            _say(answers, peak=peak_bytes())
            continue
        run, seconds = runs[request["input"]], []
        for _ in range(request["runs"]):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        _say(answers, seconds=seconds)


def peak_bytes() -> int:
    """The most resident memory that this process ever held; 0 where the system does not tell."""
    status = Path("/proc/self/status")  # ru_maxrss would be the parent's on Linux, where that was larger
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _say(answers: TextIO, **message: Any) -> None:
    print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    main()
