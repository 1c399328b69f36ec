"""One contender: a process that opens a bundle and runs it once for every line it reads.

python -m coda_compile.bench.worker BUNDLE INPUTS.npz THREADS
"""

import sys
import time
from pathlib import Path

import numpy as np

from coda_targets import Bundle


def main() -> None:
    """Answer ``ready``, then the seconds of one run for each line on stdin, until it closes."""
    folder, inputs, threads = sys.argv[1:]
    bundle = Bundle(Path(folder), threads=int(threads))
    with np.load(inputs) as arrays:
        feed = bundle.prepare(dict(arrays))
    session = bundle.session
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        session.run(None, feed)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
