"""Ridge regression from sums: whatever is added, memory is a matrix of the width."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from coda_models.fitting.batches import check_finite

_ROUNDING = 1e-12  # of float64 sums, with room


class Affine(NamedTuple):
    """x -> x · weight + bias, float64."""

    weight: Tensor  # [inputs, outputs]
    bias: Tensor  # [outputs]

    def part(self, outputs: slice) -> "Affine":
        """Some of its outputs."""
        return Affine(self.weight[:, outputs], self.bias[outputs])

    def added(self) -> "Affine":
        """x + what it makes of x."""
        return Affine(self.weight + torch.eye(len(self.weight)).to(self.weight), self.bias)

    def then(self, other: "Affine") -> "Affine":
        """Another map of what it makes of x."""
        return Affine(self.weight @ other.weight, self.bias @ other.weight + other.bias)


class Thin(NamedTuple):
    """x -> x · down · up + bias, float64."""

    down: Tensor  # [inputs, rank]
    up: Tensor  # [rank, outputs]
    bias: Tensor  # [outputs]


def ridged(gram: Tensor, added: Tensor, square: Tensor) -> Tensor:
    """XᵀX of centred x with a ridge on its diagonal, which is 1 where x does not vary.

    Args:
        gram: [inputs, inputs].
        added: the ridge, a scalar.
        square: the mean diagonal before x was centred.
    """
    added = torch.where(varies(gram, square), added, 1.0)
    return gram + added * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def varies(gram: Tensor, square: Tensor) -> Tensor:
    """Whether x varies beyond rounding; arguments as for ``ridged``."""
    return gram.diagonal().mean() > _ROUNDING * square


class Regression:
    """Weighted least squares of y on x, with an intercept that no ridge pulls at.

    Sums are float64, and so is what is solved. The ridge is a multiple of the variance of one row, summed over inputs:
    it means the same at any scale of x, and weighs as much as ridge · inputs rows would. Where x does not vary the
    answer is the mean of y.

    Args:
        what: gives the rows, for people.
    """

    def __init__(self, what: str, inputs: int, outputs: int, device: torch.device) -> None:
        self._what = what
        self.rows = 0
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._x, self._y, self._xx, self._xy = (
            torch.zeros(shape, dtype=torch.float64, device=device)
            for shape in ((inputs,), (outputs,), (inputs, inputs), (inputs, outputs))
        )

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Add rows.

        Args:
            x: [rows, inputs]; y: [rows, outputs].
            weight: [rows], by default 1; rows of weight 0 count for nothing.
        """
        x, y = x.double(), y.double()
        weight = torch.ones(len(x), dtype=x.dtype, device=x.device) if weight is None else weight.double()
        weighted = x * weight.unsqueeze(1)
        self.rows += int((weight > 0).sum())
        self._weight += weight.sum()
        self._x += weighted.sum(0)
        self._y += weight @ y
        self._xx += weighted.T @ x
        self._xy += weighted.T @ y

    def solve(self, ridge: float) -> Affine:
        """The map that minimises Σ weight · |y - x · W - b|² + λ · |W|².

        Raises:
            ConfigError: rows were NaN or infinite.
        """
        gram, x, y = self._centred()
        weight = torch.linalg.solve(self._ridged(gram, ridge), self._xy - torch.outer(x, self._y))
        return Affine(weight, y - x @ weight)

    def thin(self, whole: Affine, rank: int, ridge: float = 0.0) -> Thin:
        """The map of a rank at most that comes closest to one of x, on the rows that were added.

        Of the one that is solved with the same ridge this is reduced-rank regression: W on the top eigenvectors of
        Wᵀ (XᵀX + λ) W.

        Args:
            whole: any map of x; it need not be fitted.

        Raises:
            ConfigError: rows were NaN or infinite.
        """
        gram, mean, _ = self._centred()
        values = whole.weight.T @ self._ridged(gram, ridge) @ whole.weight
        kept = torch.linalg.eigh(values).eigenvectors.flip(1)[:, :rank]  # [outputs, rank], the largest first
        missing = rank - kept.shape[1]
        down, up = F.pad(whole.weight @ kept, (0, missing)), F.pad(kept.T, (0, 0, 0, missing))
        return Thin(down, up, whole.bias + mean @ (whole.weight - down @ up))  # exact at the mean

    def _ridged(self, gram: Tensor, ridge: float) -> Tensor:
        return ridged(gram, ridge * gram.diagonal().sum() / self._total, self._xx.diagonal().mean())

    @property
    def _total(self) -> Tensor:
        return self._weight.clamp(min=torch.finfo(torch.float64).tiny)

    def _centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """XᵀX of centred x, and the means of x and y."""
        check_finite(self._what, self._xx, self._xy)
        x, y = self._x / self._total, self._y / self._total
        return self._xx - torch.outer(x, self._x), x, y
