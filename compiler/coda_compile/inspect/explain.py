"""Layer by layer: which operators run where, what onnxruntime fused, and where the time goes."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from coda_compile.inspect.profile import Kernel, Profile
from coda_ops import RUNTIME_DOMAIN


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
        fused: operators that onnxruntime put in the place of several, with their counts.
    """

    layer: int | None
    seconds: float
    roles: dict[str, float]
    operators: dict[str, dict[str, int]]
    bodies: dict[str, int]
    fused: dict[str, int]

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
    fused = _fused(profile)
    numbers = sorted({k.place.layer for k in profile.kernels if k.place and k.place.layer is not None})
    rows = []
    for layer in (*numbers, None):
        kernels = [k for k in profile.kernels if k.place and k.place.layer == layer]
        rows.append(_row(layer, kernels, dict(fused[layer])))
    return Explanation(profile, tuple(rows))


def _fused(profile: Profile) -> dict[int | None, Counter[str]]:
    """Fused operators by layer."""
    counts: dict[int | None, Counter[str]] = defaultdict(Counter)
    for node in profile.graph.node:
        place = profile.places.get(node.name)
        if place is not None and (node.domain == RUNTIME_DOMAIN or "/MatMulAddFusion" in node.name):
            counts[place.layer][node.op_type] += 1
    return counts


def _row(layer: int | None, kernels: list[Kernel], fused: dict[str, int]) -> LayerExplanation:
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
