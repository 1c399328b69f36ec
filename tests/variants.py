"""Packages of several variants, built from parts that are compiled one by one."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from coda_compile import pipeline
from coda_compile.backends import get_backend
from coda_compile.bundling import sentence_folder
from coda_compile.bundling.package import BuiltVariant, CompiledVariant, save_variants, write_package
from coda_compile.bundling.writer import describe, model_digest, replacing, write_config, write_tokenizer
from coda_compile.passes import run_passes
from coda_compile.precision import get_precision
from coda_compile.verify.against_torch import elsewhere, expected
from coda_compile.verify.cases import kept_case
from coda_compile.verify.parity import Tolerances
from coda_compile.verify.reference_vectors import ReferenceVectors
from coda_models import CodaModel
from coda_targets import Bundle


def package(
    model: CodaModel, kinds: Sequence[tuple[str, str]], output: Path, tokenizer: PreTrainedTokenizerFast
) -> Bundle:
    """A package with a variant for each target and precision."""
    parts, compiled = [], []
    for name, precision in kinds:
        backend, recipe, own = get_backend(name), get_precision(precision), deepcopy(model).eval()
        if recipe.quantise is not None:
            recipe.quantise(own, (), True)
        graph = pipeline.export(own, backend.opset)
        compiled.append(CompiledVariant(backend.runtime, precision, graph, run_passes(graph, backend.passes())))
        parts.append((backend, recipe, own))
    case, tolerances, built = kept_case(model.signature), Tolerances(), []
    mask = model.signature.mask(case.inputs)
    with replacing(output) as folder:
        files = save_variants(folder, compiled)
        for variant, file, (backend, recipe, own) in zip(compiled, files, parts, strict=True):
            parity = pipeline.verify_or_keep(own, file.path, backend, tolerances, output, None)
            allowed = elsewhere(own, case, parity, recipe.elsewhere)
            vectors = ReferenceVectors(case.inputs, mask, *expected(own, file.path, case, backend), allowed)
            built.append(BuiltVariant(variant, file, {"": parity}, tolerances, {"": vectors}))
        described = describe(model, model_digest(model))
        write_config(folder, described.config)
        write_tokenizer(folder, tokenizer, model.signature)
        sentence_folder.write(folder, model, {})
        write_package(folder, described, built)
    return Bundle(output)
