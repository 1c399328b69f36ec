"""What the pipeline compiles: everything that it asks of a model, whatever the model came as."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from transformers import PreTrainedTokenizerBase

    from coda_compile.backends import Backend
    from coda_compile.bundling.writer import Described
    from coda_compile.options import CompileOptions
    from coda_compile.precision import Precision
    from coda_compile.prepare.calibration import Calibration
    from coda_compile.prepare.pruning import Pruning
    from coda_compile.verify.on_target import Verified
    from coda_targets.manifest import TaskInfo


class Compilable(ABC):
    """A model on its way through the pipeline, whose stages change it in place.

    Attributes:
        kind: what it was recognised as, for people.
        tokenizer: ``None`` where it has none.
        digest: SHA-256 of its tensors as they came, once options were applied.
    """

    kind: str
    tokenizer: "PreTrainedTokenizerBase | None"
    digest: str

    @abstractmethod
    def apply(self, options: "CompileOptions") -> None:
        """Give it what its user says of its classes, its r, its tokenizer.

        Raises:
            CodaError: the model cannot be so.
        """

    @abstractmethod
    def copy(self) -> "Compilable":
        """Another one, so that what a variant changes stays its own."""

    def prune(self, threshold: float, calibration: "Calibration | None") -> "Pruning":
        """Take away slots whose gates stay under a threshold in (0, 1).

        Raises:
            OptionError: nobody can look at its gates, or too much would change.
        """
        raise OptionError("{kind} cannot be pruned: leave {prune_gates} out", kind=self.kind)

    def quantise(self, precision: "Precision", calibration: "Calibration | None") -> None:
        """Quantise its frozen linear layers.

        Raises:
            CodaError: it has none that can be.
        """
        raise OptionError("{kind} compiles as it is: leave {precision} out", kind=self.kind)

    @abstractmethod
    def fit_ood(self, method: str, data: "Mapping[str, Path]") -> None:
        """Fit an out-of-distribution detector, from then on a part of it.

        Args:
            data: the file of each task; a single model has no name.
        """

    @abstractmethod
    def export(self, opset: int) -> "ir.Model":
        """The graph that passes begin with."""

    def finish(self, compiled: "ir.Model") -> None:  # noqa: B027  most have nothing to add
        """What is left to do to a graph once passes ran, in place."""

    @abstractmethod
    def verify(self, path: Path, backend: "Backend", precision: "Precision", output: Path) -> "dict[str, Verified]":
        """Hold a compiled file against the model.

        Args:
            path: of the file; what the tasks of a shared backbone trained is written beside it.
            precision: of what was compiled.
            output: a failure is kept beside it.

        Returns:
            What was proved, by task; a single model has no name.

        Raises:
            VerificationError: which output, layer and input.
        """

    @abstractmethod
    def describe(self) -> "Described":
        """What a bundle says of it."""

    def tasks(self) -> "list[TaskInfo]":
        """The tasks that share a backbone; none of a single model."""
        return []

    def write_modules(self, folder: Path) -> None:  # noqa: B027  most have none
        """Write what sentence-transformers reads of a model that embeds sequences."""
