"""The three verdicts of the regression check."""

from enum import Enum


class Verdict(Enum):
    """What the gate decided; a build reads it from the exit code."""

    NO_REGRESSION = "no regression"
    REGRESSION = "regression"
    CANNOT_TELL = "cannot tell"

    @property
    def exit_code(self) -> int:
        """0, 3 or 4; 1 and 2 stay with errors and wrong usage, so that a broken check never looks like a slow model."""
        return {Verdict.NO_REGRESSION: 0, Verdict.REGRESSION: 3, Verdict.CANNOT_TELL: 4}[self]
