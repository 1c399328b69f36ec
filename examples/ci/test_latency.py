"""The regression check among a project's own tests.

CODA_BUNDLE=build/bundle CODA_BASELINE=released/bundle pytest test_latency.py

Skipped where the machine cannot tell; `--coda-latency-strict` makes that a failure.
"""

import os

from coda_compile.pytest_plugin import LatencyGate


def test_latency(coda_latency: LatencyGate) -> None:
    coda_latency.assert_not_slower(os.environ["CODA_BUNDLE"], than=os.environ["CODA_BASELINE"], by=0.05)
