"""Transformations of a compiled model: one a file, on onnx_ir's own pass framework.

A backend lists the passes of its target in order; here they are run, and counted.
"""

import re
from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from coda_compile.bundling.build_report import PassReport
from coda_compile.errors import CompileError
from coda_compile.export import TAGS
from coda_compile.passes.fusion import FusionResult
from coda_compile.passes.validity import first_fault
from coda_targets.routing import ROLE_TAG

Pass = ir.passes.InPlacePass


def pass_name(one: Pass) -> str:
    """A pass as reports name it: its class, in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(one).__name__).lower()


def operator_counts(model: ir.Model) -> Counter[str]:
    """How often each operator stands in the main graph, ``domain::name`` outside the default domain."""
    return Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph)


def _tags(model: ir.Model) -> dict[str | None, dict[str, str]]:
    """Layer and role of the node behind every value."""
    return {
        value.name: {key: node.metadata_props[key] for key in TAGS if key in node.metadata_props}
        for node in model.graph
        for value in node.outputs
    }


def _hand_on(tags: dict[str | None, dict[str, str]], model: ir.Model) -> None:
    """Tag the nodes that a foreign pass put in another's place, known by the value that they still compute."""
    for node in model.graph:
        if ROLE_TAG not in node.metadata_props:
            node.metadata_props.update(tags.get(node.outputs[0].name) or {ROLE_TAG: "model"})


def run_passes(model: ir.Model, passes: Iterable[Pass]) -> list[PassReport]:
    """Run passes in order, in place, and say what each did; a pass that did nothing says so too.

    Raises:
        CompileError: a pass made a valid graph invalid.
    """
    reports, sound = [], first_fault(model) is None
    for one in passes:
        before = operator_counts(model)
        tags = _tags(model)
        result = one(model)
        if sound and (fault := first_fault(model)) is not None:
            raise CompileError(
                f"the pass {pass_name(one)} made the graph invalid ({fault}): please report it, with the model"
            )
        _hand_on(tags, model)
        after = operator_counts(model)
        changed = {op: after[op] - before[op] for op in sorted(before | after) if after[op] != before[op]}
        declined = result.declined if isinstance(result, FusionResult) else {}
        reports.append(PassReport(pass_name(one), bool(result.modified), sum(after.values()), changed, declined))
    return reports
