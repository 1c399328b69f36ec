"""Every option of ``compile``, and what speaks against them before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coda_compile.prepare.calibration import Calibration
    from coda_models.config import Reduction
    from coda_targets import Target


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How to compile a model; the defaults compile it as it was trained, for onnxruntime on a CPU.

    Attributes:
        target: where it will run, one of ``coda_targets.target_names()`` or such a target with changes; or several.
        precision: of the frozen linear layers: ``fp32``, ``int8``, ``int8-static`` with activations quantised by scales
            that ``calibration`` asks for, or ``int4`` weights; or several.
        backbone: folder or hub name of a delta's or an adapter's backbone, by default what it names.
        tokenizer: for the bundle, instead of the source's own; texts are truncated where either says.
        problem_type: what a text classifier's logits stand for, one of ``coda_targets.manifest.PROBLEM_TYPES``, where
            its source does not say so, as adapters of PEFT do not.
        labels: names of a classifier's classes in order of the logits, by default the source's.
        reduction: run at another r than the model was trained with, or at one a layer; 1 is the dense adapter.
        calibration: for ``int8-static`` and ``prune_gates`` texts like those to come: a CSV file with the column
            ``text``, or the model's inputs by name, [batch, tokens] each, batch by batch without padding.
        prune_gates: take away slots whose gates stay under this in all of those texts.
        pack: compute valid tokens alone, for batches of texts of different lengths.
        ood: score how far out a text is, by one of ``coda_models.ood.METHODS``: outputs ``ood_score`` and ``is_ood``.
        ood_data: CSV file with the columns ``text`` and ``label`` of texts that the model is meant for; of several
            tasks, one for each by its name.
    """

    target: "str | Target | Sequence[str | Target]" = "cpu"
    precision: str | Sequence[str] = "fp32"
    backbone: Path | str | None = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    problem_type: str | None = None
    labels: Sequence[str] | None = None
    reduction: "Reduction | Sequence[Reduction] | None" = None
    calibration: "Calibration | None" = None
    prune_gates: float | None = None
    pack: bool = False
    ood: str | None = None
    ood_data: Path | str | Mapping[str, Path | str] | None = None

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those asked for, one or several."""
        return (self.precision,) if isinstance(self.precision, str) else tuple(self.precision)

    def targets(self) -> "tuple[Target, ...]":
        """Those asked for, one or several, as this compilation takes them.

        Raises:
            TargetError: one that is unknown or not finished, or whose runtime is not installed.
            OptionError: one that cannot pack.
        """
        from coda_compile.lowering import complete, packing
        from coda_targets import Target

        asked = [self.target] if isinstance(self.target, str | Target) else self.target
        found = [complete(target) for target in asked]
        return tuple(packing(target) if self.pack else target for target in found)

    def variants(self) -> "tuple[tuple[Target, str], ...]":
        """Every target with every precision, as given.

        Raises:
            TargetError: as ``targets`` says.
            OptionError: there is none, two are the same, or a target does not have a precision.
        """
        targets, precisions = self.targets(), self.precisions
        for option, names in (("target", [target.name for target in targets]), ("precision", precisions)):
            if not names:
                raise OptionError(f"there is nothing to compile for: give a {{{option}}}")
            if len(set(names)) < len(names):
                twice = next(name for name in names if list(names).count(name) > 1)
                raise OptionError(f"{{{option}}} {{twice!r}} is given twice: give it once", twice=twice)
        for target in targets:
            for precision in precisions:
                if precision not in target.precisions:
                    raise OptionError(
                        "target {name!r} has no precision {asked!r}: use one of {known}",
                        name=target.name,
                        asked=precision,
                        known=", ".join(target.precisions),
                    )
        return tuple((target, precision) for target in targets for precision in precisions)

    def check(self, tasks: Sequence[str] | None = None) -> None:
        """Refuse what contradicts itself.

        Args:
            tasks: names of the models that share a backbone; ``None`` of a single model.

        Raises:
            OptionError: what does not go together, is missing, or is not known.
            TargetError: as ``targets`` says.
        """
        variants = self.variants()
        self._check_classes()
        self._check_calibration()
        self._check_ood()
        if tasks is not None:
            self._check_together(variants)
        self.ood_files(tasks)

    def ood_files(self, tasks: Sequence[str] | None = None) -> dict[str, Path]:
        """Which file each task's score is fitted on; a single model has no name.

        Args:
            tasks: as for ``check``.

        Raises:
            OptionError: a task without a file, or a file of no task.
        """
        names = [""] if tasks is None else list(tasks)
        if self.ood_data is None:
            return {}
        data = self.ood_data if isinstance(self.ood_data, Mapping) else dict.fromkeys(names[:1], self.ood_data)
        if set(data) != set(names):
            raise OptionError("several tasks need {ood_data} once for each, in their order: texts it is meant for")
        return {name: Path(data[name]) for name in names}

    def _check_classes(self) -> None:
        from coda_targets.manifest import PROBLEM_TYPES

        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            known = ", ".join(PROBLEM_TYPES)
            raise OptionError(
                "{problem_type} {asked!r} is unknown: use one of {known}", asked=self.problem_type, known=known
            )
        if self.labels is not None and (len(set(self.labels)) < len(self.labels) or not all(self.labels)):
            raise OptionError("{labels} needs a name of its own for each class")

    def _check_calibration(self) -> None:
        from coda_compile.precision.quantize import STATIC

        if self.prune_gates is not None and self.calibration is None:
            raise OptionError("{prune_gates} looks at gates in texts like those to come: give them as {calibration}")
        if self.prune_gates is None and (self.calibration is None) == (STATIC in self.precisions):
            raise OptionError(
                "{precision} {static} and {calibration} go together: texts like those to come", static=STATIC
            )

    def _check_ood(self) -> None:
        if (self.ood is None) != (self.ood_data is None):
            raise OptionError("{ood} and {ood_data} go together: the threshold is taken from the data")
        if self.ood is not None:
            from coda_models.ood import METHODS

            if self.ood not in METHODS:
                known = ", ".join(METHODS)
                raise OptionError(
                    "the out-of-distribution score {asked!r} is unknown: use one of {known}",
                    asked=self.ood,
                    known=known,
                )

    def _check_together(self, variants: "Sequence[tuple[Target, str]]") -> None:
        """Refuse what several tasks on one backbone cannot have."""
        from coda_compile.precision.quantize import STATIC

        if self.problem_type is not None or self.labels is not None:
            raise OptionError("{problem_type} and {labels} are one model's: set them in each model before it is saved")
        if self.prune_gates is not None:
            raise OptionError(
                "several tasks cannot be pruned together: leave {prune_gates} out, or compile each by itself"
            )
        if STATIC in self.precisions:
            raise OptionError(
                "several tasks cannot share {static}: use {precision} int8, or compile each by itself", static=STATIC
            )
        for target, _ in variants:
            if target.plugin:
                raise OptionError(
                    "target {name!r} cannot swap tasks: compile each by itself, or use {target} cpu", name=target.name
                )
