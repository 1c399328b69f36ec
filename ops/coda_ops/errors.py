"""The base of every error that the project raises for its user, and errors in options."""

from collections.abc import Callable
from string import Formatter

_LONGEST = 300  # letters of another library's sentence


class CodaError(Exception):
    """One clear sentence for the user: what was wrong, where, and what to do next.

    Command lines print the message and exit with a non-zero status; anything else that escapes is a defect.
    """


class CodaWarning(UserWarning):
    """One clear sentence on what is less than its user may expect, and goes on all the same."""


class OptionError(CodaError):
    """An option that is missing, contradicts another one, or cannot be met.

    The sentence names options by their fields. Whoever shows it may spell them as its user does: a command line has
    flags.

    Args:
        template: a format string. What ``values`` name is filled in; every other name in braces is an option.
        values: what else the sentence names.
    """

    def __init__(self, template: str, **values: object) -> None:
        self.template, self.values = template, values
        super().__init__(self.spelt(str))

    def spelt(self, option: Callable[[str], str]) -> str:
        """The sentence, with each option's name as ``option`` spells it."""
        names = [name for _, name, _, _ in Formatter().parse(self.template) if name]
        return self.template.format_map({**{name: option(name) for name in names}, **self.values})


def first_line(error: BaseException) -> str:
    """What another library's exception says, cut to one line, for use inside a sentence of ours.

    A line that ends in a colon only announces the reason, which follows. Some lines list all that a library knows.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return cut(line)


def cut(line: str) -> str:
    """A line, or as many of its words as a sentence of ours has room for."""
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rpartition(' ')[0] or line[:_LONGEST]} …"


def shown(value: object) -> str:
    """A value in one short line, whatever it is, for use inside a sentence of ours."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__} without a short form"
    return " ".join(text.split())[:80]
