"""Where a bundle is expected to beat its dense model on a GPU: the card of this machine, or else well-known ones."""

from rich.table import Table

from coda_compile.inspect.break_even import break_even, speed_up
from coda_compile.inspect.cards import CARDS, Card, card_here
from coda_compile.precision import UNQUANTISED
from coda_compile.terminal import out, whole
from coda_targets import TargetError, get_runtime
from coda_targets.manifest import Manifest, VariantInfo
from coda_targets.runtimes import GPU

_BATCHES = (1, 8, 32)


def show(manifest: Manifest) -> None:
    """Print an estimate for each precision that a bundle has for GPUs; nothing where it has none, or routes nothing."""
    if all(layer.reduction == "1" for layer in manifest.layers):
        return
    here = card_here()
    cards = (here,) if here is not None and here.complete else CARDS
    for precision in dict.fromkeys(one.precision for one in manifest.variants if _on_gpu(one)):
        whole(_table(manifest, cards, precision))
        out.print(
            "  an estimate by arithmetic, not measured: the dense model in the same precision; native kernels, CUDA "
            "graphs, all tokens valid",
            soft_wrap=True,
        )


def _on_gpu(variant: VariantInfo) -> bool:
    try:
        return get_runtime(variant.target).device == GPU
    except TargetError:  # of a newer release
        return False


def _table(manifest: Manifest, cards: tuple[Card, ...], precision: str) -> Table:
    longest, unit, half = manifest.signature.max_length, manifest.signature.unit, precision != UNQUANTISED
    table = Table(
        title=f"estimated on GPUs in {precision}", title_justify="left", box=None, pad_edge=False, padding=(0, 2)
    )
    table.add_column("card", no_wrap=True)
    table.add_column("faster than the dense model", no_wrap=True)
    for batch in _BATCHES:
        table.add_column(f"{batch} x {longest}", justify="right", no_wrap=True)
    for card in cards:
        tokens = break_even(manifest, card, half=half)
        ratios = [f"{speed_up(manifest, card, batch, longest, half=half):.1f}x" for batch in _BATCHES]
        table.add_row(
            card.name, "never" if tokens is None else f"from about {_rounded(tokens):,} {unit} a batch", *ratios
        )
    return table


def _rounded(tokens: int) -> int:
    """To two digits, as the estimate is not better."""
    return round(tokens, 2 - len(str(tokens)))
