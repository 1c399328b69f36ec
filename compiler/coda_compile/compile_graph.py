"""compile() for an ONNX file of another exporter: the same passes, verified against the file itself."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnxscript import version_converter

from coda_compile.backends import Backend
from coda_compile.bundling.package import NEWEST_OPSET, BuiltVariant, CompiledVariant, save_variants, write_package
from coda_compile.bundling.writer import Described, check_output, ood_info, replacing, write_config, write_tokenizer
from coda_compile.errors import CompileError, VerificationError
from coda_compile.export import quiet
from coda_compile.logits import logits_info
from coda_compile.passes import run_passes
from coda_compile.precision import UNQUANTISED
from coda_compile.prepare import ood_of_graph
from coda_compile.prepare.fit_ood import check, fit
from coda_compile.sources.classes import CROSS_ENCODER_KEYS, check_asked
from coda_compile.sources.onnx_graph import Graph, original, read
from coda_compile.sources.truncation import longest
from coda_compile.verify.cases import cases, kept_case
from coda_compile.verify.kernels import of_kernels
from coda_compile.verify.parity import CaseParity, Comparison, Tolerances
from coda_compile.verify.reference_vectors import ReferenceVectors
from coda_compile.verify.reproduction import failure_folder, keep_failure
from coda_models.ood import OodDetector
from coda_ops.errors import first_line
from coda_targets import Bundle
from coda_targets.bundle import Arrays
from coda_targets.errors import InputError
from coda_targets.routing import RoutingProbe
from coda_targets.runtimes import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OLDEST_IR = 9  # of the models that torch exports, for the function bodies


def compile_graph(
    path: Path,
    backend: Backend,
    *,
    output: Path,
    tokenizer: "PreTrainedTokenizerBase | None",
    problem_type: str | None,
    labels: Sequence[str] | None,
    ood: str | None,
    ood_data: Path | None,
    stage: Callable[[str], AbstractContextManager[object]],
) -> Bundle:
    """As ``compile``, for the file that ``find_onnx`` found."""
    with stage("load"):
        graph = _named(read(path), problem_type, labels)
        check(ood, ood_data, graph.task, graph.logits, graph.labels)
        digest = _digest(graph.model)
        _upgrade(graph.model, backend.opset, path)
    compiled, words, detector = graph.model, tokenizer or graph.tokenizer, None
    graph = replace(graph, signature=longest(graph.signature, words))
    reference = graph.run
    if ood is not None and ood_data is not None:
        with stage("ood"):
            features = ood_of_graph.features_of(graph)
            run = original(path, compiled, features=features)
            detector = fit(ood_of_graph.classifier(graph, run, features), words, ood, ood_data)
            reference = ood_of_graph.scoring(graph, run, features, detector)
            ood_of_graph.append(graph, run, features, detector)
    with stage("passes"):
        passes = run_passes(compiled, backend.passes())
        backend.check(compiled)
    variant = CompiledVariant(backend.runtime, UNQUANTISED, compiled, passes)
    with replacing(output, stage) as folder:
        (file,) = save_variants(folder, [variant])
        with stage("verify"):
            compared = graph, reference, detector, file.path
            parity = _verify(*compared, backend.verified_on().runtime, failure_folder(output))
            if (kernels := backend.with_kernels()) is not None:
                with of_kernels():
                    _verify(*compared, kernels.runtime, failure_folder(output))
        with stage("bundle"):
            case = kept_case(graph.signature)
            mask = graph.signature.mask(case.inputs)
            vectors = ReferenceVectors(case.inputs, mask, reference(case.inputs), [], {}, Tolerances())
            described = _describe(graph, detector, digest)
            write_config(folder, described.config)
            if words is not None:
                write_tokenizer(folder, words, graph.signature)
            built = BuiltVariant(variant, file, {"": parity}, Tolerances(), {"": vectors})
            write_package(folder, described, [built])
        check_output(output)  # again: minutes have passed
    return Bundle(output)


def _named(graph: Graph, problem_type: str | None, labels: Sequence[str] | None) -> Graph:
    """A graph whose logits stand for what its user says."""
    check_asked(graph.task, len(graph.labels), problem_type, labels)
    config, named = graph.config, graph.labels if labels is None else tuple(labels)
    if problem_type is not None:
        own = {key: value for key, value in config.items() if key not in CROSS_ENCODER_KEYS}
        config = {**own, "problem_type": problem_type}
    if labels is not None:
        by_number = {str(i): name for i, name in enumerate(labels)}
        config = {**config, "id2label": by_number, "label2id": {name: i for i, name in enumerate(labels)}}
    logits = logits_info(graph.task, config, len(named), "--problem-type")
    return replace(graph, config=config, labels=named, logits=logits)


def _digest(model: ir.Model) -> str:
    """SHA-256 of the weights of a file, as it came."""
    digest = hashlib.sha256()
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING:
            digest.update(f"{name}|{tensor.dtype.name}|{tensor.shape}|".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def _upgrade(model: ir.Model, opset: int, path: Path) -> None:
    """Bring a model to the opset that passes and function bodies are written in, or leave it at a newer one."""
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


def _verify(
    graph: Graph,
    reference: Callable[[Arrays], Arrays],
    detector: OodDetector | None,
    path: Path,
    runtime: Runtime,
    failed: Path,
) -> list[CaseParity]:
    """Run every case through the file as it came and through what was compiled of it, and compare."""
    probe = RoutingProbe(path, runtime, threads=1)
    results = []
    for case in cases(graph.signature):
        expected, actual = reference(case.inputs), Arrays()
        try:
            actual, _ = probe.run(case.inputs)
            comparison = Comparison(case.name, graph.signature.mask(case.inputs), Tolerances(), replayed=True)
            if detector is not None:
                comparison.flags(actual, detector.threshold)
            results.append(comparison.outputs(expected, actual))
        except (InputError, VerificationError) as error:
            keep_failure(failed, path, case.inputs, expected, actual, runtime=runtime)
            what = "" if isinstance(error, VerificationError) else f"verification failed on input '{case.name}': "
            raise VerificationError(f"{what}{error}; reproduction in {failed}") from None
    return results


def _describe(graph: Graph, detector: OodDetector | None, digest: str) -> Described:
    config = graph.config
    return Described(
        task=graph.task,
        architecture=str(config.get("model_type", "unknown")),
        config={**config, "vocab_size": graph.signature.lead.size},
        signature=graph.signature,
        labels=graph.labels,
        logits=graph.logits,
        model_sha256=digest,
        ood=ood_info(detector),
    )
