"""Exit codes: errors have 1 and 2 for themselves."""

from coda_compile.regression.verdict import Verdict


def test_every_verdict_has_an_exit_code_of_its_own():
    assert {verdict.value: verdict.exit_code for verdict in Verdict} == {
        "no regression": 0,
        "regression": 3,
        "cannot tell": 4,
    }
