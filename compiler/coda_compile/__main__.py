"""``python -m coda_compile``."""

from coda_compile.cli.main import main

main()
