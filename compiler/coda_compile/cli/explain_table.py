"""An explanation in the terminal: a table of layers, then what their operators, bodies and fusions are."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from rich.table import Table

from coda_compile.inspect.explain import Explanation, LayerExplanation, layer_ranges
from coda_compile.terminal import out

# Roles that share a column; everything else goes into the last one.
_COLUMNS = {
    "attention": ("attention", "key_value"),
    "feed-forward": ("feed_forward",),
    "routing": ("routing", "router"),
    "adapter": ("adapter", "stand_in"),  # either is what stands beside a layer
}


def show(explanation: Explanation) -> None:
    """Print an explanation."""
    profile = explanation.profile
    whole = profile.kernel_seconds
    threads = _number(profile.threads, "thread") if profile.threads else "onnxruntime's own choice of threads"
    out.print(
        f"{profile.batch} x {profile.tokens} tokens, medians of {_number(profile.runs, 'run')}, {threads}; "
        f"{profile.run_seconds * 1e3:.1f} ms a run with the profiler on, {whole * 1e3:.1f} ms of it in kernels",
        soft_wrap=True,
    )
    table = Table(title="where the time goes", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer")
    for name in ("ms", "share", *_COLUMNS, "other", "kernels"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in explanation.layers:
        grouped = [sum(row.roles.get(role, 0.0) for role in roles) for roles in _COLUMNS.values()]
        cells = [*grouped, row.seconds - sum(grouped)]
        table.add_row(
            "outside" if row.layer is None else str(row.layer),
            f"{row.seconds * 1e3:.2f}",
            f"{row.seconds / whole:.0%}",
            *(f"{seconds / row.seconds:.0%}" if row.seconds else "" for seconds in cells),
            str(row.kernels),
        )
    out.print(table)
    if profile.unattributed:
        out.print(f"  {profile.unattributed:.1%} of the kernels' time could not be traced back to a layer")
    _block("which operators run where", explanation.layers, _operators)
    _block("CoDA operators, inlined because no native kernel of them is loaded", explanation.layers, _bodies)
    _block("fused", explanation.layers, lambda row: [_counts(row.fused)] if row.fused else [])


def _block(title: str, rows: Iterable[LayerExplanation], lines: Callable[[LayerExplanation], list[str]]) -> None:
    """Print what layers have in common once."""
    layers: dict[str, list[int | None]] = defaultdict(list)
    for row in rows:
        for line in lines(row):
            layers[line].append(row.layer)
    if layers:
        out.print(title)
    for line, numbers in layers.items():
        out.print(f"  {layer_ranges(numbers)}: {line}", soft_wrap=True)


def _operators(row: LayerExplanation) -> list[str]:
    return [f"{provider}: {_counts(counts)}" for provider, counts in row.operators.items()]


def _bodies(row: LayerExplanation) -> list[str]:
    return (
        [", ".join(f"{name} as {_number(count, 'kernel')}" for name, count in row.bodies.items())] if row.bodies else []
    )


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
