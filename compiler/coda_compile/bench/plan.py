"""What a benchmark measures: targets, shapes, precisions, and what they are where nobody says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coda_compile.errors import CodaError
from coda_compile.precision import get_precision, precision_names
from coda_targets import get_runtime
from coda_targets.runtimes import DEFAULT_TARGET, GPU
from coda_targets.runtimes.session import require_runtime
from coda_targets.signature import Signature

_DEFAULT_TOKENS = (128, 512)
_DEFAULT_BATCHES = {GPU: (1, 8, 32)}  # by device; 1 on others
_HALF_BITS = 16


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        reductions: r of the compiled models; empty for the one that the model was trained at.
        batches, tokens: every combination; no batches stand for 1, on a GPU for 1, 8 and 32; no tokens for 128 and
            512, as far as the model allows.
        targets: of the compiled models; empty for the default one. Of a bundle, of the variants to measure.
        precisions: of the compiled models, as far as their target has them, and on a CPU of dense baselines whose
            weights have as many bits. Empty for those that ``choose`` tries without calibration; on a GPU for those of
            16 bits, which all dense baselines have there. Of a bundle, also of the variants to measure.
        rounds: for each input.
        threads: of each contender, 0 for all cores.
        skip: names of baselines to leave out.
    """

    reductions: Sequence[str] = ()
    batches: Sequence[int] = ()
    tokens: Sequence[int] = ()
    precisions: Sequence[str] = ()
    rounds: int = 15
    threads: int = 0
    skip: Sequence[str] = ()
    targets: Sequence[str] = ()

    def device(self) -> str:
        """Kind of hardware that all targets run on.

        Raises:
            CodaError: they run on several, or one is unknown.
        """
        return device_of(self.targets or [DEFAULT_TARGET])

    def check(self) -> None:
        """Refuse targets that cannot run here, before anything is loaded or compiled.

        Raises:
            CodaError: which, and what is missing; or targets of several kinds of hardware.
        """
        self.device()
        for target in self.targets:
            require_runtime(get_runtime(target))


def device_of(targets: Iterable[str]) -> str:
    """Kind of hardware that targets run on.

    Raises:
        CodaError: they run on several, or one is unknown.
    """
    devices = {target: get_runtime(target).device for target in targets}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{target} on {device.upper()}s" for target, device in devices.items())
        raise CodaError(f"targets run on different hardware, {listed}: measure each kind by itself")
    return next(iter(devices.values()))


def usual_precisions(device: str) -> list[str]:
    """Those to measure where nobody says which."""
    recipes = [get_precision(name) for name in precision_names()]
    usual = [recipe for recipe in recipes if recipe.chosen and not recipe.calibrated]
    return [recipe.name for recipe in usual if device != GPU or recipe.bits == _HALF_BITS]


def cases(plan: Plan, signature: Signature, device: str) -> list[tuple[int, int]]:
    """Batch and length of every input.

    Raises:
        CodaError: longer than the model takes.
    """
    longest = signature.max_length
    lengths = plan.tokens or sorted({min(length, longest) for length in _DEFAULT_TOKENS})
    if max(lengths) > longest:
        raise CodaError(f"{max(lengths)} {signature.unit} are more than this model takes: give at most {longest}")
    batches = plan.batches or _DEFAULT_BATCHES.get(device, (1,))
    return [(batch, length) for batch in batches for length in lengths]
