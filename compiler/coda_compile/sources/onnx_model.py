"""An ONNX file of another exporter on its way through the pipeline: it is its own reference."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
from onnxscript import version_converter
from transformers import PreTrainedTokenizerBase

from coda_compile.backends import Backend
from coda_compile.bundling import sentence_folder
from coda_compile.bundling.package import NEWEST_OPSET
from coda_compile.bundling.writer import Described, ood_info
from coda_compile.errors import CompileError, OptionError
from coda_compile.export import quiet
from coda_compile.logits import logits_info
from coda_compile.options import CompileOptions
from coda_compile.precision import UNQUANTISED, Precision
from coda_compile.prepare import fit_ood, ood_of_graph
from coda_compile.sources import onnx_pooling
from coda_compile.sources.classes import CROSS_ENCODER_KEYS, check_asked
from coda_compile.sources.compilable import Compilable
from coda_compile.sources.onnx_graph import Graph, original, read
from coda_compile.sources.truncation import longest
from coda_compile.verify import against_graph
from coda_compile.verify.cases import kept_case
from coda_compile.verify.on_target import Verified, verify_on_target
from coda_compile.verify.parity import Tolerances
from coda_compile.verify.reference_vectors import ReferenceVectors
from coda_models.ood import OodDetector
from coda_ops.errors import first_line
from coda_targets.signature import Arrays

_OLDEST_IR = 9  # of the models that torch exports, for the function bodies
_NEEDS_TORCH = ("backbone", "reduction", "prune_gates", "pack")  # options that take more than a graph tells


@dataclass(frozen=True)
class _Detector:
    """What a score of the graph's texts is made of.

    Attributes:
        run: the file as it came, which gives the features too.
        features: name of the value that stands for a text.
        fitted: on both.
    """

    run: Callable[[Arrays], Arrays]
    features: str
    fitted: OodDetector


@dataclass
class OnnxModel(Compilable):
    """A graph ready to compile, as it is.

    Attributes:
        kind: what it was recognised as, for people.
        graph: as it came; nothing changes what stands in it.
        tokenizer: ``None`` where the source has none.
        digest: see ``Compilable``.
    """

    kind: str
    graph: Graph
    tokenizer: PreTrainedTokenizerBase | None
    digest: str = ""
    _detector: _Detector | None = None

    @classmethod
    def read(cls, path: Path, options: CompileOptions) -> "OnnxModel":
        """Read what ``find_onnx`` found.

        Raises:
            OptionError: what only a torch model can be asked for.
            CodaError: as ``onnx_graph.read`` says.
        """
        asked = next((name for name in _NEEDS_TORCH if getattr(options, name)), None)
        if any(precision != UNQUANTISED for precision in options.precisions):
            asked = "precision"
        if asked is not None:
            raise OptionError(
                f"{{path}} is an ONNX file and compiles as it is, in {UNQUANTISED}: for {{{asked}}} give the model it "
                "was exported from",
                path=path,
            )
        graph = read(path)
        note = "" if graph.sentence is None else graph.sentence.note
        return cls(f"ONNX file{note}", graph, graph.tokenizer, _digest(graph.model))

    def apply(self, options: CompileOptions) -> None:
        """See ``Compilable``."""
        self.tokenizer = options.tokenizer or self.tokenizer
        graph = _named(self.graph, options)
        if options.ood is not None:
            fit_ood.check(graph.task, graph.logits, graph.labels)
        self.graph = replace(graph, signature=longest(graph.signature, self.tokenizer))

    def copy(self) -> "OnnxModel":
        """See ``Compilable``."""
        return replace(self)

    def fit_ood(self, method: str, data: Mapping[str, Path]) -> None:
        """See ``Compilable``."""
        (file,) = data.values()
        features = ood_of_graph.features_of(self.graph)
        run = original(self.graph.path, self.graph.model, features=features)
        classifier = ood_of_graph.classifier(self.graph, run, features)
        self._detector = _Detector(run, features, fit_ood.fit(classifier, self.tokenizer, method, file))

    def export(self, opset: int) -> ir.Model:
        """A copy at the opset that passes and function bodies are written in, or at a newer one, with its detector."""
        model = self.graph.model.clone()
        _upgrade(model, opset, self.graph.path)
        if self.graph.sentence is not None:
            onnx_pooling.append(model, self.graph.sentence)
        if self._detector is not None:
            graph = replace(self.graph, model=model)
            ood_of_graph.append(graph, self._detector.run, self._detector.features, self._detector.fitted)
        return model

    def verify(self, path: Path, backend: Backend, precision: Precision, output: Path) -> dict[str, Verified]:
        """See ``Compilable``."""
        reference, threshold = self.graph.run, None
        if (found := self._detector) is not None:
            reference = ood_of_graph.scoring(self.graph, found.run, found.features, found.fitted)
            threshold = found.fitted.threshold
        compare = partial(against_graph.verify, self.graph.signature, reference, path, threshold=threshold)
        parity = verify_on_target(compare, path, backend, output)
        case = kept_case(self.graph.signature)
        mask = self.graph.signature.mask(case.inputs)
        vectors = ReferenceVectors(case.inputs, mask, reference(case.inputs), [], {}, Tolerances())
        return {"": Verified(parity, vectors)}

    def describe(self) -> Described:
        """See ``Compilable``."""
        config = self.graph.config
        return Described(
            task=self.graph.task,
            architecture=str(config.get("model_type", "unknown")),
            config={**config, "vocab_size": self.graph.signature.lead.size},
            signature=self.graph.signature,
            labels=self.graph.labels,
            logits=self.graph.logits,
            model_sha256=self.digest,
            ood=ood_info(None if self._detector is None else self._detector.fitted),
        )

    def write_modules(self, folder: Path) -> None:
        """See ``Compilable``."""
        if (sentence := self.graph.sentence) is not None:
            case = kept_case(self.graph.signature)
            sentence_folder.write(
                folder,
                sentence.pooling,
                [(module, {}) for module in sentence.modules],
                width=self.graph.run(case.inputs)[onnx_pooling.STATES].shape[-1],
                max_length=self.graph.signature.max_length,
                about=sentence.about,
            )


def _digest(model: ir.Model) -> str:
    """SHA-256 of the initializers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING:
            digest.update(f"{name}|{tensor.dtype.name}|{tensor.shape}|".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def _named(graph: Graph, options: CompileOptions) -> Graph:
    """A graph whose logits stand for what its user says."""
    problem_type, labels = options.problem_type, options.labels
    check_asked(graph.task, len(graph.labels), problem_type, labels)
    config, named = graph.config, graph.labels if labels is None else tuple(labels)
    if problem_type is not None:
        own = {key: value for key, value in config.items() if key not in CROSS_ENCODER_KEYS}
        config = {**own, "problem_type": problem_type}
    if labels is not None:
        by_number = {str(i): name for i, name in enumerate(labels)}
        config = {**config, "id2label": by_number, "label2id": {name: i for i, name in enumerate(labels)}}
    logits = logits_info(graph.task, config, len(named), graph.beside / "config.json")
    return replace(graph, config=config, labels=named, logits=logits)


def _upgrade(model: ir.Model, opset: int, path: Path) -> None:
    """Bring a model to an opset, in place, unless it is at a newer one."""
    found = model.opset_imports.get("", 0)
    if found > NEWEST_OPSET:
        raise CompileError(f"{path} is of opset {found}: export it with opset {NEWEST_OPSET} or older")
    if found < opset:
        try:
            with quiet():
                version_converter.convert_version(model, opset, fallback=True)
        except Exception as error:  # the converter's own, and that of onnx's below it
            raise CompileError(
                f"{path} is of opset {found} and cannot be brought to {opset}: {first_line(error)}; export it with that"
            ) from None
        if model.opset_imports[""] != opset:
            raise CompileError(f"{path} is of opset {found} and cannot be brought to {opset}: export it with that")
    model.ir_version = max(model.ir_version, _OLDEST_IR)
