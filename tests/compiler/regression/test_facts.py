"""What needs no clock: counted from the runtime's own graph, and what decides by itself."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from tests.compiler.regression.results import FACTS, rewrite
from tests.targets.test_manifest import edit_variant

from coda_compile.inspect.cost import multiply_adds
from coda_compile.regression.facts import IncomparableError, compare, is_fused, read_facts, require_comparable
from coda_targets import Bundle, BundleError
from coda_targets.manifest import TensorInfo
from coda_targets.modalities.text import text_signature


def test_operators_are_counted_after_the_runtime_fused_them(compiled: Bundle):
    facts = read_facts(compiled)
    assert facts.operators["com.microsoft::BiasGelu"] == 2  # one a layer
    assert "Gelu" not in facts.operators
    assert not any(name.startswith("ai.coda") for name in facts.operators)  # functions, which the runtime inlines
    assert facts.placement == {"CPUExecutionProvider": facts.nodes}
    assert facts.preferred == "CPUExecutionProvider"
    assert facts.bytes == compiled.model_path.stat().st_size
    assert facts.multiply_adds == multiply_adds(compiled.manifest, compiled.manifest.signature.max_length)


def test_a_bundle_does_not_differ_from_itself(compiled: Bundle):
    facts = read_facts(compiled)
    assert compare(facts, read_facts(compiled), by=0.05) == ()


def test_a_fusion_that_the_graph_prevents_is_a_regression(compiled: Bundle, copied: Path):
    model = onnx.load(copied / "model.onnx")
    fused = next(node for node in model.graph.node if node.op_type == "AddGelu")
    at = list(model.graph.node).index(fused)
    apart = [
        onnx.helper.make_node("Add", fused.input, ["shifted"], name="shift"),
        onnx.helper.make_node("Gelu", ["shifted"], fused.output, name="gelu"),
    ]
    for node in apart:
        node.metadata_props.extend(fused.metadata_props)
    model.graph.node.remove(fused)
    for offset, node in enumerate(apart):
        model.graph.node.insert(at + offset, node)
    model.graph.output.add(name="shifted")  # what others read cannot be fused away
    onnx.save(model, copied / "model.onnx")
    changed = Bundle(rewrite(copied))
    changed.check()
    before, after = read_facts(compiled), read_facts(changed)
    (worse,) = (item for item in compare(before, after, by=0.05) if item.regression)
    assert str(worse) == "fused com.microsoft::BiasGelu: 2 before, now 1"


def test_a_fused_operator_in_a_graph_that_shrank_is_a_note():
    better = replace(FACTS, operators={"MatMul": 7, "com.microsoft::BiasGelu": 1}, placement={"CPU": 8})
    assert [(item.what, item.regression) for item in compare(FACTS, better, by=0.05)] == [
        ("fused com.microsoft::BiasGelu", False),
        ("operators", False),
    ]


@pytest.mark.parametrize("field", ["multiply_adds", "bytes"])
@pytest.mark.parametrize(("growth", "regression"), [(1.2, True), (1.06, True), (1.04, False), (0.5, False)])
def test_work_and_bytes_may_grow_by_the_threshold(field: str, growth: float, regression: bool):
    changed = replace(FACTS, **{field: int(getattr(FACTS, field) * growth)})
    (difference,) = compare(FACTS, changed, by=0.05)
    assert difference.regression == regression
    assert str(difference).endswith(f"({(growth - 1) * 100:+.1f} %)")


def test_nodes_that_leave_the_preferred_provider_are_a_regression_and_those_that_return_are_not():
    elsewhere = replace(FACTS, placement={"CPU": 7, "Other": 3})
    (difference,) = compare(FACTS, elsewhere, by=0.05)
    assert (difference.what, difference.regression) == ("nodes on Other instead of CPU", True)
    (difference,) = compare(elsewhere, FACTS, by=0.05)
    assert not difference.regression


def test_regressions_come_first_and_many_operators_are_cut_short():
    many = replace(FACTS, operators={**FACTS.operators, **{f"Op{i}": 1 for i in range(20)}}, bytes=3_000_000)
    differences = compare(replace(FACTS, multiply_adds=999_999), many, by=0.05)
    assert [item.what for item in differences] == ["bytes of the model", "multiply-adds", "operators"]
    assert differences[-1].after == "Op0 1, Op1 1, Op10 1, Op11 1, Op12 1, Op13 1, … (30 nodes)"


@pytest.mark.parametrize(
    "name", ["Gelu", "LayerNormalization", "com.microsoft::FusedMatMul", "com.microsoft::Attention"]
)
def test_what_counts_as_fused(name: str):
    assert is_fused(name)
    assert not is_fused("MatMul")
    assert not is_fused("ai.coda::Route")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "token-classification", "outputs": (TensorInfo("logits", "float32", ("batch", "sequence", 2)),)},
            r"different tasks, token-classification and sequence-classification: compare",
        ),
        (
            {"signature": text_signature(100, 32, types=2)},
            r"different longest inputs, 32 tokens and \d+ tokens: compare",
        ),
        (
            {"outputs": (TensorInfo("logits", "float32", ("batch", 7)),)},
            r"different outputs, logits float32\[batch, 7\] and",
        ),
        (
            {"signature": text_signature(100, 66)},
            r"different inputs, attention_mask int64\[batch, sequence\], input_ids",
        ),
    ],
)
def test_bundles_of_different_jobs_are_refused(
    compiled: Bundle, copied: Path, changes: dict[str, object], message: str
):
    with pytest.raises(IncomparableError, match=message):
        require_comparable(compiled, Bundle(rewrite(copied, **changes)))


def test_variants_for_different_targets_are_refused(compiled: Bundle, copied: Path):
    edit_variant(copied, target="cuda")
    with pytest.raises(IncomparableError, match=r"different targets, cuda and cpu: compare"):
        require_comparable(compiled, Bundle(copied))


def test_the_same_job_by_another_model_is_accepted(compiled: Bundle, copied: Path):
    edit_variant(copied, precision="int8")
    require_comparable(compiled, Bundle(rewrite(copied, width=64, architecture="mpnet")))


def test_a_model_that_does_not_load_is_told(copied: Path):
    (copied / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match="onnxruntime cannot load"):
        read_facts(Bundle(copied))
