"""Which sizes of input an engine is built for: TensorRT chooses its kernels before it has seen any."""

import re
from dataclasses import dataclass

from coda_targets.errors import InputError, TargetError
from coda_targets.signature import BATCH, Input, Signature

Sizes = tuple[int, int]  # batch and length
_SIZES = re.compile(r"(\d{1,9})x(\d{1,9})")
_BATCHES = 1, 8, 32  # of the profile that is taken where nobody gives one


@dataclass(frozen=True)
class Profile:
    """Bounds of batch and length, and the sizes that an engine is made fastest for.

    Attributes:
        least, best, most: batch and length.
    """

    least: Sizes
    best: Sizes
    most: Sizes

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Read ``1x64,8x256,32x512``.

        Raises:
            TargetError: it says something else, or sizes that do not rise.
        """
        found = [_SIZES.fullmatch(part.strip()) for part in text.split(",")]
        sizes = [(int(one[1]), int(one[2])) for one in found if one is not None]
        if len(sizes) != 3 or len(found) != 3:
            raise TargetError(
                f"profile {text!r} cannot be read: give the least, the usual and the largest input as BATCHxLENGTH, "
                "such as 1x64,8x256,32x512"
            )
        profile = cls(*sizes)
        if not profile.rises:
            raise TargetError(f"profile {text!r} does not rise from 1x1 or more: each size must hold the one before")
        return profile

    @classmethod
    def of(cls, signature: Signature) -> "Profile":
        """Everything that a model takes, in batches of up to 32."""
        (least, best, most), longest = _BATCHES, signature.max_length
        return cls((least, 1), (best, max(1, longest // 2)), (most, longest))

    @property
    def rises(self) -> bool:
        """Whether these are sizes, none larger than the next."""
        steps = zip(((1, 1), self.least, self.best), (self.least, self.best, self.most), strict=True)
        return all(low <= high for one, other in steps for low, high in zip(one, other, strict=True))

    def shape(self, one: Input, sizes: Sizes) -> tuple[int, ...]:
        """The shape of an input of these sizes."""
        batch, length = sizes
        dynamic = (axis for axis in one.axes if isinstance(axis, str))
        return one.shape({axis: batch if axis == BATCH else length for axis in dynamic})

    def shapes(self, sizes: Sizes, signature: Signature) -> str:
        """The shapes of all inputs of these sizes, as onnxruntime's providers read them."""
        each = ((one.name, self.shape(one, sizes)) for one in signature.inputs)
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in each)

    def check(self, batch: int, length: int, unit: str) -> None:
        """Refuse an input that no kernel was chosen for.

        Raises:
            InputError: which bound it breaks, and what to do.
        """
        sizes = zip((batch, length), self.least, self.most, strict=True)
        if not all(low <= size <= high for size, low, high in sizes):
            raise InputError(
                f"{batch} x {length} {unit} are outside of the profile {self}, which the model was compiled for: run "
                "smaller batches, split or pad inputs, or compile it for another profile"
            )

    def __str__(self) -> str:
        """As ``parse`` reads it."""
        return ",".join(f"{batch}x{length}" for batch, length in (self.least, self.best, self.most))
