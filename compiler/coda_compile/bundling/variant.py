"""A model compiled for one target in one precision, verified and ready to be written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from coda_compile.backends import Backend
from coda_compile.bundling.build_report import PassReport
from coda_compile.bundling.writer import Described
from coda_compile.precision import Precision
from coda_compile.verify.on_target import Verified
from coda_targets.manifest import TaskInfo


@dataclass(frozen=True)
class BuiltVariant:
    """One of the variants of a package.

    Attributes:
        backend, precision: what it was compiled for.
        path: of its ONNX file, weights and the files of its tasks beside it.
        compiled: what stands in that file.
        described: what there is to say of the model in it.
        passes: what each one did.
        verified: what was proved, by task; a single model has no name.
        tasks: those that share a backbone.
    """

    backend: Backend
    precision: Precision
    path: Path
    compiled: ir.Model
    described: Described
    passes: Sequence[PassReport]
    verified: Mapping[str, Verified]
    tasks: Sequence[TaskInfo]
