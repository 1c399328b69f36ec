"""Everything of a bundle but its model: what it says of itself, and what proves it."""

from collections.abc import Sequence
from pathlib import Path

from coda_compile.bundling.build_report import write_report
from coda_compile.bundling.variant import BuiltVariant
from coda_compile.bundling.writer import write_config, write_manifest, write_tokenizer
from coda_compile.prepare.pruning import Pruning
from coda_compile.sources.compilable import Compilable
from coda_compile.verify import reference_vectors
from coda_compile.verify.parity import Tolerances


def write_package(
    folder: Path, variants: Sequence[BuiltVariant], source: Compilable, pruning: Pruning | None = None
) -> None:
    """Complete a bundle.

    Args:
        folder: that the variant lies in.
        variants: one.
        source: brings the tokenizer and the modules of sentence-transformers.
        pruning: what was taken away before export.

    Raises:
        CodaError: as ``write_tokenizer`` says.
    """
    (variant,) = variants
    described = variant.described
    for i, (task, proved) in enumerate(variant.verified.items()):
        reference_vectors.write(folder, *proved.vectors(), task=task if i else "")
    write_config(folder, described.config)
    if source.tokenizer is not None:
        write_tokenizer(folder, source.tokenizer, described.signature)
        source.write_modules(folder)
    parity = {task: proved.parity for task, proved in variant.verified.items()}
    write_report(folder, variant.passes, parity, Tolerances(), pruning)
    write_manifest(folder, described, variant.compiled, variant.backend, variant.precision.name, variant.tasks)
