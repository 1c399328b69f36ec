"""Layer by layer: which operators run where, what was fused, what was not and why, and where the time goes."""

from collections import Counter
from dataclasses import dataclass

from coda_compile.inspect.fusions import Graph, Missed, fired, missed
from coda_compile.inspect.profile import Kernel, Profile


@dataclass(frozen=True)
class LayerExplanation:
    """What runs for one layer.

    Attributes:
        layer: index, bottom first; ``None`` for what stands before and after the layers.
        seconds: of its kernels.
        roles: seconds by role, most first.
        operators: how many kernels of each operator run on each provider, by provider; bodies of ``ai.coda``
            operators left out.
        bodies: kernels that each inlined ``ai.coda`` operator became.
        fired: fused operators with their counts.
        missed: fusions that it could have and has not.
    """

    layer: int | None
    seconds: float
    roles: dict[str, float]
    operators: dict[str, dict[str, int]]
    bodies: dict[str, int]
    fired: dict[str, int]
    missed: tuple[Missed, ...]

    @property
    def kernels(self) -> int:
        """How many run."""
        return sum(self.bodies.values()) + sum(sum(counts.values()) for counts in self.operators.values())


@dataclass(frozen=True)
class Explanation:
    """What runs for a whole model.

    Attributes:
        layers: bottom first, then what stands outside of them.
    """

    profile: Profile
    layers: tuple[LayerExplanation, ...]


def explain(profile: Profile) -> Explanation:
    """Sort a profile by layers."""
    graph = Graph(profile.graph, profile.places)
    yes, no = fired(graph), missed(graph)
    numbers = sorted({k.place.layer for k in profile.kernels if k.place and k.place.layer is not None})
    rows = []
    for layer in (*numbers, None):
        kernels = [k for k in profile.kernels if k.place and k.place.layer == layer]
        rows.append(_row(layer, kernels, dict(yes[layer]), tuple(no[layer])))
    return Explanation(profile, tuple(rows))


def _row(
    layer: int | None, kernels: list[Kernel], fused: dict[str, int], not_fused: tuple[Missed, ...]
) -> LayerExplanation:
    roles: dict[str, float] = {}
    operators: dict[str, Counter[str]] = {}
    bodies: Counter[str] = Counter()
    for kernel in kernels:
        assert kernel.place is not None
        roles[kernel.place.role] = roles.get(kernel.place.role, 0.0) + kernel.seconds
        if kernel.place.function is not None:
            bodies[kernel.place.function] += 1
        else:
            operators.setdefault(kernel.provider, Counter())[kernel.operator] += 1
    return LayerExplanation(
        layer,
        sum(kernel.seconds for kernel in kernels),
        dict(sorted(roles.items(), key=lambda item: -item[1])),
        {provider: dict(counts.most_common()) for provider, counts in sorted(operators.items())},
        dict(bodies.most_common()),
        fused,
        not_fused,
    )


def layer_ranges(layers: list[int | None]) -> str:
    """``layers 0-3, 5`` for people; ``None`` is the rest of the model."""
    numbers = sorted(layer for layer in layers if layer is not None)
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    parts = [f"layer{'s' if len(numbers) > 1 else ''} {shown}"] if numbers else []
    return " and ".join(parts + ["outside the layers"] * (None in layers))
