"""A choice in the terminal: every candidate, what it costs and gains, and the one that was taken."""

from rich.table import Table

from coda_compile.terminal import out, whole
from coda_compile.tune.choice import Candidate, Choice


def show(choice: Choice) -> None:
    """Print a choice."""
    reference = choice.candidates[0]
    table = Table(
        title=f"{choice.texts} texts, latency of one of {choice.tokens} tokens",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for name in ("accuracy", "points lost", "same predictions", "ms", "faster", "multiply-adds", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for candidate in sorted(choice.candidates, key=lambda c: c.seconds):
        table.add_row(
            _name(candidate),
            f"{candidate.right / choice.texts:.2%}",
            f"{choice.lost(candidate):+.2f}",
            f"{candidate.same / choice.texts:.2%}",
            f"{candidate.seconds * 1e3:,.1f}",
            f"{reference.seconds / candidate.seconds:.2f}x",
            f"{candidate.multiply_adds / 1e9:.2f} G",
            _remark(candidate, choice),
        )
    whole(table)
    out.print(
        f"chosen: {_name(choice.chosen)}, the fastest that loses at most {choice.budget:g} points; "
        f"one text is {100 / choice.texts:.2g}",
        soft_wrap=True,
    )
    if choice.kernels is not None:
        side = "with" if choice.kernels >= 1 else "without"
        out.print(f"  runs {side} native kernels, which make it {choice.kernels:.2f}x as fast", soft_wrap=True)


def _name(candidate: Candidate) -> str:
    return f"r={candidate.reduction} {candidate.precision}"


def _remark(candidate: Candidate, choice: Choice) -> str:
    marks = [
        ("chosen", candidate == choice.chosen),
        ("as trained", candidate == choice.candidates[0]),
        ("on the front", choice.on_front(candidate)),
        ("over budget", choice.lost(candidate) > choice.budget),
    ]
    return ", ".join(mark for mark, holds in marks if holds)
