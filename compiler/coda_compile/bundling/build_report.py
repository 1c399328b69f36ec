"""report.json: what was pruned, what every pass did, and how every verified input compared. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coda_compile.prepare.pruning import Pruning
from coda_compile.verify.parity import CaseParity, Tolerances
from coda_ops.records import read_record, record_json
from coda_targets.errors import BundleError

REPORT = "report.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: of the pass.
        modified: whether it says that it changed the model.
        nodes: in the main graph, after it.
        operators: change in the count of every operator that it changed.
        declined: how many places it left as they were, by reason.
    """

    name: str
    modified: bool
    nodes: int
    operators: dict[str, int]
    declined: dict[str, int]


@dataclass(frozen=True)
class ParityReport:
    """How every verified input compared, the tasks of a bundle one behind the other."""

    tolerances: Tolerances
    cases: tuple[CaseParity, ...]


@dataclass(frozen=True)
class VariantReport:
    """How a variant was made.

    Attributes:
        passes: in the order that they ran in.
    """

    passes: tuple[PassReport, ...]
    parity: ParityReport

    @staticmethod
    def of(
        passes: Sequence[PassReport], parity: Mapping[str, Sequence[CaseParity]], tolerances: Tolerances
    ) -> "VariantReport":
        """Args: parity: by task; ``""`` where there is but one."""
        cases = tuple(replace(case, task=task) for task, some in parity.items() for case in some)
        return VariantReport(tuple(passes), ParityReport(tolerances, cases))


@dataclass(frozen=True)
class BuildReport:
    """How a bundle was made.

    Attributes:
        pruning: ``None`` where nothing was asked for.
        variants: by name.
    """

    pruning: Pruning | None
    variants: dict[str, VariantReport]
    schema_version: int = SCHEMA_VERSION


def write_report(folder: Path, report: BuildReport) -> None:
    """Write a bundle's report."""
    (folder / REPORT).write_text(record_json(report), "utf-8")


def read_report(folder: Path) -> BuildReport:
    """Read a bundle's report.

    Raises:
        BundleError: it is missing or damaged.
    """
    return read_record(
        folder / REPORT,
        BuildReport,
        what="report of a compilation",
        remedy="compile the model again",
        version=SCHEMA_VERSION,
        error=BundleError,
    )
