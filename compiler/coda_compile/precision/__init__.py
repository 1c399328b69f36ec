"""Precisions: one recipe a file, found by its name.

A precision is that of the frozen layers' linear layers, and of large tables of embeddings; in float16 of all that
layers compute. Routers, gates and head stay float32: they are small, and a router that is quantised routes other
tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from coda_compile.errors import CompileError

if TYPE_CHECKING:
    from torch import Tensor

    from coda_compile.verify.parity import Tolerances
    from coda_models.model import CodaModel

    Quantise = Callable[[CodaModel, Iterable[Mapping[str, Tensor]], bool], None]

UNQUANTISED = "fp32"  # what models are compiled in where nobody says


@dataclass(frozen=True)
class Precision:
    """One recipe.

    Attributes:
        name: as on the command line.
        summary: one line for people.
        bits: of the weights.
        elsewhere: how far a bundle's own test data may be off on another machine, where nobody replays what is
            quantised.
        tolerances: how far what was compiled may be off while torch replays its decisions; ``None`` as in float32.
        half: whether the passes of its backends convert the graph to float16.
        quantise: changes a model in place; ``None`` where it stays as it is. It takes the model; its inputs by name,
            batch by batch without padding, none unless ``calibrated``; and whether adapters beside layers may be
            quantised too, which they may not where tasks swap them.
        calibrated: whether ``quantise`` needs inputs like those to come.
        shared: whether several tasks can share what is quantised.
        chosen: whether ``choose`` tries it, because it may be faster.
    """

    name: str
    summary: str
    bits: int
    elsewhere: "Tolerances"
    tolerances: "Tolerances | None" = None
    half: bool = False
    quantise: "Quantise | None" = None
    calibrated: bool = False
    shared: bool = True
    chosen: bool = True


def precision_names() -> tuple[str, ...]:
    """The recipes there are, one for each module here; nothing is imported for it."""
    return tuple(sorted(module.name.replace("_", "-") for module in iter_modules(__path__) if not module.ispkg))


def get_precision(name: str) -> Precision:
    """Import one recipe.

    Raises:
        CompileError: unknown; the message lists the known ones.
    """
    if name not in precision_names():
        raise CompileError(f"precision {name!r} is unknown: use one of {', '.join(precision_names())}")
    recipe: Precision = import_module(f"{__name__}.{name.replace('-', '_')}").RECIPE
    return recipe
