"""Every option of ``compile``, and the checks that need nothing loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coda_compile.errors import OptionError
from coda_compile.precision import UNQUANTISED, Precision, get_precision
from coda_targets.runtimes import DEFAULT_TARGET

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coda_compile.backends import Backend
    from coda_compile.prepare.calibration import Calibration
    from coda_models.config import Reduction
    from coda_targets.profile import Profile


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How to compile a model; by default as it was trained, for the default target.

    Attributes:
        target: where it will run, one of ``coda_compile.backends.backend_names()`` or a backend itself; or several.
        precision: of the frozen linear layers, one of ``coda_compile.precision.precision_names()`` that every target
            has; or several.
        backbone: folder or hub name of a delta's or an adapter's backbone, by default what it names.
        tokenizer: for the bundle, instead of the source's own; texts are truncated where either says.
        problem_type: what a text classifier's logits stand for, one of ``coda_targets.manifest.PROBLEM_TYPES``, where
            its source does not say so, as adapters of PEFT do not.
        labels: names of a classifier's classes in order of the logits, by default the source's.
        reduction: run at another r than the model was trained with, or at one a layer; 1 is the dense model.
        calibration: calibration data, for ``prune_gates`` and for precisions that are calibrated: a CSV file with the
            column ``text``, or the model's inputs by name, batch by batch without padding.
        prune_gates: remove slots whose gates stay under this on all of the calibration data.
        profile: sizes of input, for targets that compile models for certain sizes: the least, the usual and the largest
            as in ``1x64,8x256,32x512``, batch and length. By default all that the model takes, in batches of up to 32.
        pack: run linear layers on valid tokens alone, for batches of sequences of different lengths.
        ood: add an out-of-distribution score, one of ``coda_models.ood.METHODS``: outputs ``ood_score`` and ``is_ood``.
        ood_data: in-distribution data, a CSV file with the columns ``text`` and ``label``; of several tasks, one for
            each by its name.
    """

    target: "str | Backend | Sequence[str | Backend]" = DEFAULT_TARGET
    precision: str | Sequence[str] = UNQUANTISED
    backbone: Path | str | None = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    problem_type: str | None = None
    labels: Sequence[str] | None = None
    reduction: "Reduction | Sequence[Reduction] | None" = None
    calibration: "Calibration | None" = None
    prune_gates: float | None = None
    profile: "Profile | str | None" = None
    pack: bool = False
    ood: str | None = None
    ood_data: Path | str | Mapping[str, Path | str] | None = None

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those asked for, one or several."""
        return (self.precision,) if isinstance(self.precision, str) else tuple(self.precision)

    def backends(self) -> "tuple[Backend, ...]":
        """Of the targets asked for, one or several.

        Raises:
            TargetError: one that is unknown.
            OptionError: one that packs no rows, or compiles for no sizes.
        """
        from coda_compile.backends import Backend, get_backend

        asked = [self.target] if isinstance(self.target, str | Backend) else self.target
        found = tuple(get_backend(target) if isinstance(target, str) else target for target in asked)
        for backend in found:
            if self.pack and not backend.packs_rows:
                raise OptionError("target {name!r} packs no rows: leave out {pack}", name=backend.name)
            if self.profile is not None and not backend.runtime.profile_option:
                raise OptionError("target {name!r} takes inputs of any size: leave {profile} out", name=backend.name)
        return found

    @property
    def sizes(self) -> "Profile | None":
        """The profile that is asked for.

        Raises:
            TargetError: it cannot be read.
        """
        from coda_targets.profile import Profile

        return Profile.parse(self.profile) if isinstance(self.profile, str) else self.profile

    def variants(self) -> "tuple[tuple[Backend, Precision], ...]":
        """Every target with every precision, as given.

        Raises:
            TargetError: as ``backends`` says, or what a target verifies on is not installed.
            OptionError: as ``backends`` says, there is none, two are the same, or a target does not have a precision.
        """
        from coda_compile.backends import ready_backend

        backends, precisions = self.backends(), self.precisions
        for option, names in (("target", [backend.name for backend in backends]), ("precision", precisions)):
            if not names:
                raise OptionError(f"there is nothing to compile for: give a {{{option}}}")
            if len(set(names)) < len(names):
                twice = next(name for name in names if list(names).count(name) > 1)
                raise OptionError(f"{{{option}}} {{twice!r}} is given twice: give it once", twice=twice)
        for backend in backends:
            for precision in precisions:
                if precision not in backend.precisions:
                    raise OptionError(
                        "target {name!r} has no precision {asked!r}: use one of {known}",
                        name=backend.name,
                        asked=precision,
                        known=", ".join(backend.precisions),
                    )
        recipes = [get_precision(precision) for precision in precisions]
        ready = [ready_backend(backend) for backend in backends]
        return tuple((backend, recipe) for backend in ready for recipe in recipes)

    def check(self, tasks: Sequence[str] | None = None) -> None:
        """Refuse what contradicts itself.

        Args:
            tasks: names of the models that share a backbone; ``None`` of a single model.

        Raises:
            OptionError: what does not go together, is missing, or is not known.
            TargetError: as ``variants`` says.
        """
        variants = self.variants()
        _ = self.sizes
        self._check_classes()
        self._check_calibration([recipe for _, recipe in variants])
        self._check_ood()
        if self.ood is not None and len(variants) > 1:
            raise OptionError("{ood} is fitted to one variant: give one {target} and one {precision}")
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
            raise OptionError("several tasks need {ood_data} once for each, in their order")
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

    def _check_calibration(self, recipes: Sequence[Precision]) -> None:
        if self.prune_gates is not None and self.calibration is None:
            raise OptionError("{prune_gates} measures gates on calibration data: give {calibration}")
        calibrated = next((recipe.name for recipe in recipes if recipe.calibrated), None)
        if calibrated is not None and self.calibration is None:
            raise OptionError("{precision} {name} needs calibration data: give {calibration}", name=calibrated)
        if calibrated is None and self.prune_gates is None and self.calibration is not None:
            raise OptionError("{precision} {name} is not calibrated: leave {calibration} out", name=recipes[0].name)

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

    def _check_together(self, variants: "Sequence[tuple[Backend, Precision]]") -> None:
        """Refuse what several tasks on one backbone cannot have."""
        if self.problem_type is not None or self.labels is not None:
            raise OptionError("{problem_type} and {labels} are one model's: set them in each model before it is saved")
        if len(variants) > 1:
            raise OptionError("several tasks share one variant: give one {target} and one {precision}")
        if self.prune_gates is not None:
            raise OptionError(
                "several tasks cannot be pruned together: leave {prune_gates} out, or compile each by itself"
            )
        for backend, recipe in variants:
            if not recipe.shared:
                raise OptionError(
                    "several tasks cannot share {precision} {name}: compile each by itself", name=recipe.name
                )
            if not backend.swaps_tasks:
                raise OptionError(
                    "target {name!r} cannot swap tasks: compile each by itself, or use {target} {default}",
                    name=backend.name,
                    default=DEFAULT_TARGET,
                )
