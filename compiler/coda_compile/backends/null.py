"""Compiles as for a CPU, and is verified there: tests of everything around a runtime need none."""

from dataclasses import replace

from coda_compile.backends.cpu import BACKEND as CPU
from coda_targets.runtimes.null import RUNTIME

BACKEND = replace(CPU, runtime=RUNTIME)
