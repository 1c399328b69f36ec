"""``python -m coda_compile``."""

from coda_compile.cli import main

main()
