"""The base of every error that the project raises for its user."""


class CodaError(Exception):
    """One clear sentence for the user: what was wrong, where, and what to do next.

    Command lines print the message and exit with a non-zero status; anything else that escapes is a defect.
    """


def first_line(error: BaseException) -> str:
    """What another library's exception says, cut to one line, for use inside a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
