"""Several torch models on one backbone, compiled as one: the backbone once, and a file for what each task trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from transformers import PreTrainedTokenizerBase

from coda_compile.backends import Backend
from coda_compile.bundling import tasks
from coda_compile.bundling.writer import Described
from coda_compile.options import CompileOptions
from coda_compile.precision import Precision
from coda_compile.prepare.calibration import Calibration
from coda_compile.sources.compilable import Compilable
from coda_compile.sources.torch_model import TorchModel
from coda_compile.verify.on_target import Verified
from coda_targets.manifest import TaskInfo


@dataclass
class SharedBackbone(Compilable):
    """Models by the names of their tasks; the graph is exported from the first.

    Attributes:
        kind: what it is, for people.
        models: one or more.
        tokenizer: of the first one.
        digest: of the first one.
    """

    kind: str
    models: Mapping[str, TorchModel]
    tokenizer: PreTrainedTokenizerBase | None
    digest: str = ""

    @classmethod
    def of(cls, models: Mapping[str, TorchModel]) -> "SharedBackbone":
        """Those models, one or more."""
        return cls("tasks on one backbone", models, next(iter(models.values())).tokenizer)

    @property
    def _first(self) -> TorchModel:
        return next(iter(self.models.values()))

    def apply(self, options: CompileOptions) -> None:
        """See ``Compilable``; all tasks have one tokenizer.

        Raises:
            CompileError: tasks that could not share one graph and one backbone.
        """
        self.tokenizer = options.tokenizer or self.tokenizer
        for model in self.models.values():
            model.apply(replace(options, tokenizer=self.tokenizer))
        self.digest = self._first.digest
        tasks.check({name: one.model for name, one in self.models.items()})

    def copy(self) -> "SharedBackbone":
        """See ``Compilable``."""
        return replace(self, models={name: model.copy() for name, model in self.models.items()})

    def quantise(self, precision: Precision, calibration: Calibration | None) -> None:
        """See ``Compilable``; what tasks swap stays float32."""
        for model in self.models.values():
            model.quantise(precision, calibration, adapters=False)

    def fit_ood(self, method: str, data: Mapping[str, Path]) -> None:
        """See ``Compilable``."""
        for name, file in data.items():
            self.models[name].fit_ood(method, {name: file})

    def export(self, opset: int) -> ir.Model:
        """See ``Compilable``."""
        return self._first.export(opset)

    def finish(self, compiled: ir.Model) -> None:
        """Turn what tasks train into initializers that a run may override."""
        tasks.make_swappable(compiled, self._first.model)

    def verify(self, path: Path, backend: Backend, precision: Precision, output: Path) -> dict[str, Verified]:
        """See ``Compilable``."""
        found = {}
        for name, model in self.models.items():
            adapter = tasks.write(path.parent, name, model.model)
            found[name] = model.verify_task(path, backend, precision, output, adapter)
        return found

    def describe(self) -> Described:
        """See ``Compilable``."""
        return self._first.describe()

    def tasks(self) -> list[TaskInfo]:
        """See ``Compilable``."""
        return [tasks.info(name, model.model) for name, model in self.models.items()]

    def write_modules(self, folder: Path) -> None:
        """See ``Compilable``."""
        self._first.write_modules(folder)
