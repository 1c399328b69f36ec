"""A pytest fixture for the regression check.

    def test_latency(coda_latency):
        coda_latency.assert_not_slower("build/reviews-cpu", than="baseline/reviews-cpu", by=0.05)

pytest imports this file in every run of every project that has coda-compile installed: what measures is imported when
a test asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from coda_targets import Bundle

_STRICT = "--coda-latency-strict"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes an unanswered question a failure."""
    parser.getgroup("coda-compile").addoption(
        _STRICT,
        action="store_true",
        help="fail instead of skipping where this machine cannot tell whether a bundle is slower",
    )


class LatencyGate:
    """What the fixture gives.

    Args:
        strict: whether a check that cannot tell fails the test.
    """

    def __init__(self, strict: bool) -> None:
        self._strict = strict

    def assert_not_slower(
        self,
        bundle: Bundle | Path | str,
        *,
        than: Bundle | Path | str,
        by: float = 0.05,
        batch: int = 1,
        tokens: int | None = None,
        threads: int = 0,
        launches: int | None = None,
        budget: float | None = None,
    ) -> None:
        """Fail if a bundle is slower than its baseline.

        Where the machine cannot tell, the test is skipped with the reason. With ``--coda-latency-strict`` it fails,
        which suits a machine that is kept for measuring.

        Args:
            bundle, than: opened, or their folders.
            by: how much slower is accepted, as a fraction.
            batch, tokens: shape of the timed input, by default one of the longest length.
            threads: of each process, 0 for all cores.
            launches, budget: the most launches and seconds, by default those of ``coda-compile check``.
        """
        __tracebackhide__ = True
        from coda_compile.errors import CodaError
        from coda_compile.regression.ab import BUDGET_SECONDS, MOST_LAUNCHES
        from coda_compile.regression.check import check
        from coda_compile.regression.verdict import Verdict

        try:
            result = check(
                bundle,
                than,
                by=by,
                batch=batch,
                tokens=tokens,
                threads=threads,
                launches=MOST_LAUNCHES if launches is None else launches,
                budget=BUDGET_SECONDS if budget is None else budget,
            )
        except CodaError as error:
            pytest.fail(str(error), pytrace=False)
        told = "; ".join((f"{result.verdict.value}: {result.reason}", *result.advice))
        if result.verdict is Verdict.REGRESSION or (self._strict and result.verdict is Verdict.CANNOT_TELL):
            pytest.fail(told, pytrace=False)
        if result.verdict is Verdict.CANNOT_TELL:
            pytest.skip(told)


@pytest.fixture
def coda_latency(request: pytest.FixtureRequest) -> LatencyGate:
    """The regression check; see ``LatencyGate.assert_not_slower``."""
    return LatencyGate(strict=bool(request.config.getoption(_STRICT)))
