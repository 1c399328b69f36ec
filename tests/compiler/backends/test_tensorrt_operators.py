"""What TensorRT's parser and builder refuse, each found while compiling."""

from pathlib import Path

import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import parsed
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend
from coda_compile.backends.tensorrt_operators import MOST_SLOTS, check_slots
from coda_compile.errors import CompileError, OptionError
from coda_compile.passes import run_passes
from coda_models import CodaConfig
from coda_ops import DOMAIN
from coda_targets import Bundle
from coda_targets.errors import InputError
from coda_targets.profile import Profile

TARGETS = ["tensorrt", "tensorrt-rtx"]


def of(body: str) -> ir.Model:
    """A graph of one input and output."""
    return parsed(f"g (float[batch, 8] x) => (float y) {{ {body} }}", shapes=True)


def long(length: int) -> Profile:
    return Profile((1, 1), (1, length), (1, length))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "b = Cast <to: int = 2> (x) c = MatMulInteger(b, b) y = Cast <to: int = 1> (c)",
            "knows no operator MatMulInteger",
        ),
        ("y = com.microsoft.Gelu(x)", "knows no operator com.microsoft::Gelu"),
        ("w = Cast <to: int = 11> (x) e = Exp(w) y = Cast <to: int = 1> (e)", "computes Cast of double in float"),
        ("w = Cast <to: int = 6> (x) e = Relu(w) y = Cast <to: int = 1> (e)", ""),
        ("w = Cast <to: int = 7> (x) e = Sqrt(x) y = Add(e, x)", ""),
        ("w = Cast <to: int = 3> (x) e = Abs(w) y = Cast <to: int = 1> (e)", "takes no int8 for Abs"),
        ("y, mean = LayerNormalization(x, x)", "gives no mean and no deviation of LayerNormalization"),
        ('i = Shape(x) y = ScatterND <reduction: string = "add"> (x, i, x)', "has no reduction in ScatterND"),
        ("k = Shape <start: int = 1> (x) y, j = TopK <sorted: int = 0> (x, k)", "has no unsorted TopK"),
        ("a = Shape <start: int = 1> (x) y = ReduceSum(x, a)", "takes axes of ReduceSum as a constant alone"),
    ],
)
def test_what_the_parser_does_not_take_is_refused_by_name(target: str, body: str, why: str):
    model = of(body)
    backend = get_backend(target)
    if not why:
        backend.check(model)
        return
    with pytest.raises(CompileError) as caught:
        backend.check(model)
    assert str(caught.value).startswith(f"target '{target}' {why}")
    assert "as node '" in str(caught.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_newer_opset_is_refused(target: str):
    model = of("y = Relu(x)")
    model.graph.opset_imports[""] = 23
    with pytest.raises(CompileError, match=rf"^target '{target}' reads opset 20 at most, and this model has opset 23"):
        get_backend(target).check(model)


@pytest.mark.parametrize("half", [False, True])
def test_its_form_has_neither_float64_nor_operators_of_others(raw: ir.Model, half: bool):
    backend = get_backend("tensorrt")
    run_passes(raw, backend.passes(half=half))
    backend.check(raw)
    domains = {node.domain for graph in (raw.graph, *raw.functions.values()) for node in graph}
    assert domains == {"", DOMAIN}


@pytest.mark.parametrize(("length", "taken"), [(2 * MOST_SLOTS, True), (2 * MOST_SLOTS + 1, False)])
def test_more_slots_than_topk_takes_are_refused(raw: ir.Model, length: int, taken: bool):
    if taken:
        check_slots(raw, "tensorrt", long(length))
        return
    with pytest.raises(OptionError) as caught:
        check_slots(raw, "tensorrt", long(length))
    assert str(caught.value) == (
        f"target 'tensorrt' routes {MOST_SLOTS} tokens at most, and layer 0 routes {MOST_SLOTS + 1} of {length} at r = 2: "
        "give a profile of shorter inputs, or a larger reduction"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_bundles_hold_their_profile_and_keep_to_it(target: str, tmp_path: Path):
    options = CompileOptions(target=target, precision=("fp32", "fp16"), profile="1x2,2x8,4x16")
    bundle = compile(tiny_coda("bert", CodaConfig(reduction=2)), options, output=tmp_path / "bundle")
    for variant in bundle.manifest.variants:
        opened = Bundle(bundle.folder, target=target, precision=variant.precision)
        assert opened.runtime.profile == Profile((1, 2), (2, 8), (4, 16))
        shapes = [value for name, value in variant.session.options.items() if name.endswith("_max_shapes")]
        assert shapes == ["input_ids:4x16,attention_mask:4x16,token_type_ids:4x16"]
        signature = opened.manifest.signature
        opened.prepare(signature.random(4, 16, ragged=True))
        for batch, length in ((5, 16), (4, 17), (1, 1)):
            with pytest.raises(
                InputError, match=rf"^{batch} x {length} tokens are outside of the profile 1x2,2x8,4x16"
            ):
                opened.prepare(signature.random(batch, length))


def test_without_one_the_profile_is_all_that_the_model_takes(tmp_path: Path):
    bundle = compile(tiny_coda(), CompileOptions(target="tensorrt"), output=tmp_path / "bundle")
    longest = bundle.manifest.signature.max_length
    assert bundle.variant.session.profile == Profile((1, 1), (8, longest // 2), (32, longest))
