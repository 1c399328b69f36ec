"""A torch model on its way through the pipeline."""

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from transformers import PreTrainedTokenizerBase

from coda_compile.backends import Backend
from coda_compile.bundling import sentence_folder
from coda_compile.bundling.writer import Described, describe, label_names, logits_of, model_digest
from coda_compile.errors import CompileError, CompileWarning
from coda_compile.export import export
from coda_compile.options import CompileOptions
from coda_compile.precision import Precision
from coda_compile.prepare import calibration as calibrating
from coda_compile.prepare import fit_ood
from coda_compile.prepare.prune_slots import prune_slots
from coda_compile.prepare.pruning import Pruning
from coda_compile.sources.classes import set_classes
from coda_compile.sources.compilable import Compilable
from coda_compile.sources.truncation import longest
from coda_compile.threads import one_thread
from coda_compile.verify import against_torch
from coda_compile.verify.cases import kept_case
from coda_compile.verify.on_target import Verified, verify_on_target
from coda_compile.verify.reference_vectors import ReferenceVectors
from coda_compile.verify.replay import valid_tokens
from coda_models.config import Reduction
from coda_models.model import CodaModel
from coda_targets.fidelity import Fidelity
from coda_targets.task_adapters import TaskAdapter


@dataclass
class TorchModel(Compilable):
    """A model ready to export.

    Attributes:
        kind: what it was recognised as, for people.
        model: in evaluation mode, float32.
        tokenizer: ``None`` where the source has none.
        about: what sentence-transformers says of the model and changes no embedding, such as prompts.
        digest: see ``Compilable``.
        backbone: of a delta, the folder or hub name that the rest came from.
        fidelity: what was measured of the model as it came.
    """

    kind: str
    model: CodaModel
    tokenizer: PreTrainedTokenizerBase | None
    about: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    backbone: Path | str | None = None
    fidelity: Fidelity | None = None

    @classmethod
    def in_memory(cls, model: CodaModel) -> "TorchModel":
        """A copy of somebody's model, which keeps its mode and reduction."""
        return cls("model in memory", deepcopy(model).eval(), None)

    def apply(self, options: CompileOptions) -> None:
        """See ``Compilable``."""
        set_classes(self.model, options.problem_type, options.labels)
        if options.reduction is not None:
            self._run_at(options.reduction)
        if options.ood is not None:
            fit_ood.check(self.model.coda_config.task, logits_of(self.model), label_names(self.model))
        self.tokenizer = options.tokenizer or self.tokenizer
        self.model.signature = longest(self.model.signature, self.tokenizer)
        self.digest = model_digest(self.model)

    def _run_at(self, reduction: Reduction | Sequence[Reduction]) -> None:
        model = self.model
        fitted = [layer.reduction for layer in model.coda_layers()]
        model.set_reduction(reduction)
        asked = model.coda_config.reduction
        if asked not in (1, (1,) * len(model.layers)) and all(layer.router is None for layer in model.coda_layers()):
            raise CompileError(
                "this model has no routers, so it runs at reduction 1 only: route it, or train one from it"
            )
        if fitted == [layer.reduction for layer in model.coda_layers()]:
            return
        self.fidelity = None
        if model.coda_config.stand_in:
            at = ", ".join(map(str, dict.fromkeys(fitted)))
            warnings.warn(
                f"stand-ins and head of this model were fitted at r = {at}, and at another r answers are off: route "
                "the dense model at that r instead",
                CompileWarning,
                stacklevel=3,
            )

    def copy(self) -> "TorchModel":
        """See ``Compilable``."""
        return replace(self, model=deepcopy(self.model))

    def prune(self, threshold: float, calibration: calibrating.Calibration | None) -> Pruning:
        """See ``Compilable``."""
        self.fidelity = None
        with one_thread():
            return prune_slots(self.model, threshold, self._texts(calibration))

    def quantise(
        self, precision: Precision, calibration: calibrating.Calibration | None, *, adapters: bool = True
    ) -> None:
        """See ``Compilable``.

        Args:
            adapters: too; not where tasks swap them.
        """
        if precision.quantise is not None:
            with one_thread():
                precision.quantise(self.model, self._texts(calibration if precision.calibrated else None), adapters)

    def _texts(self, calibration: calibrating.Calibration | None) -> Any:
        return calibrating.inputs(calibration, self.tokenizer, self.model.signature)

    def fit_ood(self, method: str, data: Mapping[str, Path]) -> None:
        """See ``Compilable``."""
        (file,) = data.values()
        self.model.ood = fit_ood.fit(self.model, self.tokenizer, method, file)

    def export(self, opset: int) -> ir.Model:
        """See ``Compilable``."""
        return export(self.model, opset)

    def verify(self, path: Path, backend: Backend, precision: Precision, output: Path) -> dict[str, Verified]:
        """See ``Compilable``."""
        return {"": self.verify_task(path, backend, precision, output)}

    def verify_task(
        self, path: Path, backend: Backend, precision: Precision, output: Path, adapter: Path | None = None
    ) -> Verified:
        """As ``verify``, for one task.

        Args:
            adapter: file of what the model trained, where the compiled one holds another task.
        """
        swapped = None if adapter is None else TaskAdapter(adapter)
        compare = partial(against_torch.verify, self.model, path, tolerances=precision.tolerances, adapter=swapped)
        parity = verify_on_target(compare, path, backend, output, adapter)
        case = kept_case(self.model.signature)
        outputs, decisions, routed = against_torch.expected(self.model, path, case, backend, swapped)
        tolerances = against_torch.elsewhere(self.model, case, precision.elsewhere)
        mask = valid_tokens(self.model, case)
        return Verified(parity, ReferenceVectors(case.inputs, mask, outputs, decisions, routed, tolerances))

    def describe(self) -> Described:
        """See ``Compilable``."""
        return replace(describe(self.model, self.digest), fidelity=self.fidelity)

    def write_modules(self, folder: Path) -> None:
        """See ``Compilable``."""
        config = self.model.coda_config
        if config.task == "feature-extraction":
            tensors = (module.state_dict() for module in self.model.after_pooling)
            sentence_folder.write(
                folder,
                config.poolings,
                list(zip(config.modules, tensors, strict=True)),
                width=int(self.model.hf_config.hidden_size),
                max_length=self.model.signature.max_length,
                about=self.about,
            )
