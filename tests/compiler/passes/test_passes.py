"""Running passes in order, on a real exported graph."""

from collections.abc import Callable

import onnx
import onnx_ir as ir

from coda_compile.backends.cpu import BACKEND
from coda_compile.export import TAGS
from coda_compile.passes import operator_counts, pass_name, run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.strip_export_metadata import StripExportMetadata
from coda_targets.routing import ROLE_TAG

PASSES = BACKEND.passes()


def test_a_pass_is_named_after_its_class():
    assert pass_name(StripExportMetadata()) == "strip_export_metadata"
    assert pass_name(FoldConstants()) == "fold_constants"  # and not after onnxscript's


def test_every_pass_is_idempotent(raw: ir.Model):
    for one in PASSES:
        one(raw)
        before = ir.to_proto(raw).SerializeToString(deterministic=True)
        name = pass_name(one)
        assert not one(raw).modified, f"{name} says that its second run changed something"
        assert ir.to_proto(raw).SerializeToString(deterministic=True) == before, f"{name} changed something unsaid"


def test_all_passes_together_are_idempotent(raw: ir.Model):
    before_functions = [one for one in PASSES if not isinstance(one, AttachFunctions)]  # or they would be folded too
    run_passes(raw, before_functions)
    again = run_passes(raw, before_functions)
    assert [(x.name, x.modified, x.operators) for x in again] == [
        (pass_name(one), False, {}) for one in before_functions
    ]


def test_reports_count_what_was_done(raw: ir.Model):
    start = operator_counts(raw)
    reports = run_passes(raw, PASSES)
    assert [report.name for report in reports] == [pass_name(one) for one in PASSES]
    total = start.copy()
    for report in reports:
        total.update(report.operators)
        assert 0 not in report.operators.values()
        assert report.nodes == sum(total.values())
    assert +total == operator_counts(raw)
    assert reports[-1].nodes == len(list(raw.graph)) < sum(start.values())
    changes = {report.name: report for report in reports}
    assert (changes["strip_export_metadata"].modified, changes["strip_export_metadata"].operators) == (True, {})
    assert (changes["attach_functions"].modified, changes["attach_functions"].operators) == (True, {})
    assert list(changes["lift_constants"].operators) == ["Constant"]
    assert changes["lift_constants"].operators["Constant"] < 0


def test_a_pass_that_did_nothing_says_so(plain: Callable[[], ir.Model]):
    reports = run_passes(plain(), PASSES)
    assert [(report.modified, report.nodes, report.operators) for report in reports] == [(False, 1, {})] * len(PASSES)


def test_coda_operators_survive_every_pass(raw: ir.Model):
    before = {name: count for name, count in operator_counts(raw).items() if "::" in name}
    assert before == {f"ai.coda::{name}": 2 for name in ("Route", "TakeTokens", "PutTokens", "Adapter")}
    run_passes(raw, PASSES)
    after = {name: count for name, count in operator_counts(raw).items() if name.startswith("ai.coda")}
    for name in ("Adapter", "PutTokens"):  # each became one with the sum behind it, or the difference before it
        del before[f"ai.coda::{name}"]
    fused = {"AddAdapter": 2, "AddGelu": 2, "AddNorm": 4, "EmbedNorm": 1, "PutDifference": 2, "SelfAttention": 2}
    assert after == before | {f"ai.coda::{name}": count for name, count in fused.items()}


def test_result_passes_the_checker(raw: ir.Model):
    run_passes(raw, PASSES)
    onnx.checker.check_model(ir.to_proto(raw), full_check=True)
    assert not {"Constant", "Identity"} & set(operator_counts(raw))


def test_every_node_keeps_its_tags(raw: ir.Model):
    before = {node.outputs[0].name: {k: v for k, v in node.metadata_props.items() if k in TAGS} for node in raw.graph}
    run_passes(raw, PASSES)
    for node in raw.graph:
        assert node.metadata_props[ROLE_TAG]
        expected = before.get(node.outputs[0].name, dict(node.metadata_props))
        if node.op_type == "AddAdapter":  # the sum that it ends with was routing's
            expected = expected | {ROLE_TAG: "adapter"}
        assert dict(node.metadata_props) == expected


def test_node_in_anothers_place_takes_over_its_tags(plain: Callable[[], ir.Model]):
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> agraph (int64[N] x, float[N] like) => (float[N] y)'
            " { y = CastLike(x, like) }"
        )
    )
    next(iter(model.graph)).metadata_props.update({"coda.layer": "3", "coda.role": "norm"})
    run_passes(model, [FoldConstants()])
    (node,) = model.graph
    assert node.op_type == "Cast"
    assert dict(node.metadata_props) == {"coda.layer": "3", "coda.role": "norm"}
