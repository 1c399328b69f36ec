"""Packages of several variants, built from parts that are compiled one by one."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from coda_compile import pipeline
from coda_compile.bundling import sentence_folder
from coda_compile.bundling.package import BuiltVariant, CompiledVariant, save_variants, write_package
from coda_compile.bundling.writer import describe, model_digest, replacing, write_config, write_tokenizer
from coda_compile.passes import run_passes
from coda_compile.precision.quantize import quantize_model
from coda_compile.verify.against_torch import elsewhere, expected
from coda_compile.verify.cases import Inputs, kept_case
from coda_compile.verify.parity import Tolerances
from coda_compile.verify.reference_vectors import ReferenceVectors
from coda_models import CodaModel
from coda_targets import Bundle, get_target


def package(
    model: CodaModel, kinds: Sequence[tuple[str, str]], output: Path, tokenizer: PreTrainedTokenizerFast
) -> Bundle:
    """A package with a variant for each target and precision."""
    models, compiled = [], []
    for name, precision in kinds:
        target, own = get_target(name), deepcopy(model).eval()
        if precision != "fp32":
            quantize_model(own, precision, adapters=True)
        graph = pipeline.export(own, target.opset)
        compiled.append(CompiledVariant(target, precision, graph, run_passes(graph, target.lowering)))
        models.append(own)
    case, tolerances, built = kept_case(Inputs.of(model)), Tolerances(), []
    with replacing(output) as folder:
        for variant, file, own in zip(compiled, save_variants(folder, compiled), models, strict=True):
            parity = pipeline.verify_or_keep(own, file.path, variant.target, tolerances, output, None)
            allowed = elsewhere(own, case, parity, variant.precision)
            vectors = ReferenceVectors(case.inputs, *expected(own, file.path, case, variant.target), allowed)
            built.append(BuiltVariant(variant, file, {"": parity}, tolerances, {"": vectors}))
        described = describe(model, model_digest(model))
        write_config(folder, described.config)
        write_tokenizer(folder, tokenizer, model.max_tokens, int(model.hf_config.vocab_size))
        sentence_folder.write(folder, model, {})
        write_package(folder, described, built)
    return Bundle(output)
