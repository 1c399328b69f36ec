"""Every kind of model through the whole compiler, and the invariants of CODA.md on what comes out."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.conftest import TINY, tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.verify.against_torch import reference
from coda_compile.verify.cases import Case, make_case
from coda_compile.verify.parity import Comparison, Tolerances, margin
from coda_models import CodaConfig, CodaModel, convert
from coda_ops.capacity import slot_count
from coda_ops.catalogue import OPERATORS
from coda_targets import Bundle
from coda_targets.routing import Decision, RoutingProbe
from coda_targets.runtimes.session import open_session
from coda_targets.signature import Arrays

VARIANTS: dict[str, tuple[str, CodaConfig]] = {
    **{f"{family}, k to k": (family, CodaConfig(reduction=2)) for family in sorted(TINY)},
    "bert, k to all": ("bert", CodaConfig(reduction=3, attention="k_to_all")),
    "mpnet, k to all": ("mpnet", CodaConfig(reduction=2, attention="k_to_all")),
    "pre-norm, k to all, tokens": (
        "roberta-prelayernorm",
        CodaConfig(reduction=4, attention="k_to_all", task="token-classification"),
    ),
    "roberta, 7/2, tokens": ("roberta", CodaConfig(reduction="7/2", task="token-classification")),
    "distilbert, one dense layer, mean": ("distilbert", CodaConfig(reduction=[1, 3], pooling="mean")),
    "mpnet, features": ("mpnet", CodaConfig(reduction=2, task="feature-extraction")),
    "bert, features of the first token": (
        "bert",
        CodaConfig(reduction=3, task="feature-extraction", pooling="first", routed_layers=[0]),
    ),
    "bert, stand-ins": ("bert", CodaConfig(reduction=3, stand_in=4)),
    "pre-norm, stand-ins, k to all, tokens": (
        "roberta-prelayernorm",
        CodaConfig(reduction=2, stand_in=4, attention="k_to_all", bottleneck=0, task="token-classification"),
    ),
    "mpnet, thin keys, features": (
        "mpnet",
        CodaConfig(reduction=3, stand_in=4, attention="k_to_all", key_value_rank=6, task="feature-extraction"),
    ),
    "pre-norm, thin keys, one dense layer": (
        "roberta-prelayernorm",
        CodaConfig(reduction=4, stand_in=4, attention="k_to_all", key_value_rank=6, routed_layers=[0]),
    ),
    "modernbert, k to all, tokens": (
        "modernbert",
        CodaConfig(reduction=3, attention="k_to_all", task="token-classification"),
    ),
    "modernbert, thin keys, features": (
        "modernbert",
        CodaConfig(reduction=2, stand_in=4, attention="k_to_all", key_value_rank=6, task="feature-extraction"),
    ),
    "bert, dense": ("bert", CodaConfig(reduction=1)),
    "bert, k is always 1": ("bert", CodaConfig(reduction=100)),
}


@dataclass(frozen=True)
class Variant:
    """One compiled model beside its original."""

    model: CodaModel
    bundle: Bundle
    probe: RoutingProbe

    @property
    def routed(self) -> dict[int, Fraction]:
        return {i: x.reduction for i, x in enumerate(self.model.coda_layers()) if x.reduction != 1}

    def case(self, batch: int, tokens: int, seed: int) -> Case:
        return make_case(
            self.model.signature, batch, min(tokens, self.model.signature.max_length), ragged=True, seed=seed
        )


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    family, config = VARIANTS[request.param]
    model = tiny_coda(family, config, seed=7)
    bundle = compile(model, output=tmp_path_factory.mktemp("variant") / "bundle")
    return Variant(model, Bundle(bundle.folder, threads=1), RoutingProbe.of(Bundle(bundle.folder, threads=1)))


many = settings(max_examples=15, deadline=None)
shapes = {"batch": st.integers(1, 6), "tokens": st.integers(1, 66), "seed": st.integers(0, 2**31)}


def assume_no_tie(case: Case, decisions: list[Decision]) -> None:
    """Leave out inputs whose routing hangs on float noise: point 6 of CODA.md speaks of them."""
    mask = case.inputs["attention_mask"].astype(bool)
    for d in decisions:
        assume(all((m := margin(d.scores[e], mask[e], d.selected(e))) is None or m > 1e-4 for e in range(len(mask))))


def valid_outputs(outputs: Arrays, example: int, tokens: int) -> Arrays:
    """What one example gives, without padding."""
    return {name: value[example, :tokens] if value.ndim == 3 else value[example] for name, value in outputs.items()}


def assert_close(actual: Arrays, expected: Arrays) -> None:
    assert list(actual) == list(expected)
    for name, wanted in expected.items():
        np.testing.assert_allclose(actual[name], wanted, rtol=0, atol=3e-4 * max(1.0, np.abs(wanted).max()))


@many
@given(**shapes)
def test_equals_torch_on_shapes_never_exported(variant: Variant, batch: int, tokens: int, seed: int):
    case = variant.case(batch, tokens, seed)
    outputs, decisions = variant.probe.run(case.inputs)
    expected, wanted = reference(variant.model, case)
    comparison = Comparison("property", case.inputs["attention_mask"].astype(bool), Tolerances(), replayed=False)
    assert [d.layer for d in decisions] == [d.layer for d in wanted] == list(variant.routed)
    for actual, own in zip(decisions, wanted, strict=True):
        comparison.layer(own.scores, [own.selected(e) for e in range(len(own.indices))], actual)
    # A gate answers a score's last bits 33 times over, and here nothing is replayed.
    loose = Comparison("outputs", case.inputs["attention_mask"].astype(bool), Tolerances(outputs=1e-3), replayed=False)
    assume(not comparison.result.ties)  # a gate at a tie is another one
    assert set(loose.outputs(expected, outputs).outputs) == set(expected)


@many
@given(**shapes, more=st.integers(1, 66))
def test_padding_changes_nothing(variant: Variant, batch: int, tokens: int, seed: int, more: int):
    case = variant.case(batch, tokens, seed)
    ids = case.inputs["input_ids"]
    more = min(more, variant.model.signature.max_length - ids.shape[1])
    padding = int(variant.model.hf_config.pad_token_id)
    fill = {"input_ids": padding, "attention_mask": 0, "token_type_ids": 0}
    padded = {n: np.pad(a, ((0, 0), (0, more)), constant_values=fill[n]) for n, a in case.inputs.items()}
    outputs, decisions = variant.probe.run(case.inputs)
    assume_no_tie(case, decisions)
    wider = variant.bundle.run(padded)
    for example, length in enumerate(case.inputs["attention_mask"].sum(1)):
        assert_close(valid_outputs(wider, example, length), valid_outputs(outputs, example, length))


@many
@given(**shapes)
def test_company_changes_nothing(variant: Variant, batch: int, tokens: int, seed: int):
    case = variant.case(batch, tokens, seed)
    outputs, decisions = variant.probe.run(case.inputs)
    assume_no_tie(case, decisions)
    for example, length in enumerate(case.inputs["attention_mask"].sum(1)):
        alone = variant.bundle.run({n: a[example : example + 1, :length] for n, a in case.inputs.items()})
        assert_close(valid_outputs(alone, 0, length), valid_outputs(outputs, example, length))


@many
@given(**shapes)
def test_selection_is_the_stable_top_k(variant: Variant, batch: int, tokens: int, seed: int):
    case = variant.case(batch, tokens, seed)
    mask = case.inputs["attention_mask"].astype(bool)
    _, decisions = variant.probe.run(case.inputs)
    for d in decisions:
        r = variant.routed[d.layer]
        assert d.indices.shape == (len(mask), slot_count(mask.shape[1], r))
        for e, valid in enumerate(mask):
            n = int(valid.sum())
            k = -(-n * r.denominator // r.numerator)
            best = sorted(np.flatnonzero(valid), key=lambda i: (-d.scores[e, i], i))[:k]
            assert d.selected(e) == sorted(int(i) for i in best)
            assert d.used[e].tolist() == [True] * k + [False] * (len(d.used[e]) - k)
            assert len(set(d.indices[e].tolist())) == len(d.indices[e])
            assert ((d.gates[e] >= 0) & (d.gates[e] <= 1)).all()
            assert (d.gates[e][k:] == 0).all()
            if k == n:
                assert (d.gates[e][:k] == 1).all()


def expose(model: Path, pairs: list[tuple[str, str]]) -> bytes:
    """The model with more outputs, and those alone."""
    proto = onnx.load(str(model))
    del proto.graph.output[:]
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return proto.SerializeToString()


def writes(bundle: Bundle) -> dict[int, tuple[str, str]]:
    """For each routed layer the names of what it has beside it, such as X + Adapter(X), and of the layer's output."""
    return {
        int(next(p.value for p in node.metadata_props if p.key == "coda.layer")): (node.input[0], node.output[0])
        for node in onnx.load(str(bundle.model_path)).graph.node
        if node.op_type in ("PutTokens", "PutDifference", "BlendTokens")
    }


@settings(max_examples=10, deadline=None)
@given(**shapes)
def test_unrouted_tokens_keep_what_stands_beside_the_layer_bit_for_bit(
    variant: Variant, batch: int, tokens: int, seed: int
):
    pairs = writes(variant.bundle)
    assert list(pairs) == list(variant.routed)
    if not pairs:
        return
    case = variant.case(batch, tokens, seed)
    session = open_session(expose(variant.bundle.model_path, list(pairs.values())), variant.bundle.runtime, threads=1)
    names = [name for pair in pairs.values() for name in pair]
    values = dict(zip(names, session.run(names, case.inputs), strict=True))
    _, decisions = variant.probe.run(case.inputs)
    changed = 0
    for d in decisions:
        base, out = (values[name] for name in pairs[d.layer])
        for e in range(len(base)):
            unrouted = np.setdiff1d(np.arange(base.shape[1]), d.selected(e))
            np.testing.assert_array_equal(out[e, unrouted], base[e, unrouted])
            changed += int((out[e, d.selected(e)] != base[e, d.selected(e)]).any())
    assert changed > 0


def test_onnx_checker_accepts_the_model(variant: Variant):
    onnx.checker.check_model(str(variant.bundle.model_path), full_check=True)


def test_only_standard_and_coda_operators_and_the_runtimes_attention(variant: Variant):
    proto = onnx.load(str(variant.bundle.model_path))
    others = {(node.domain, node.op_type) for node in proto.graph.node if node.domain}
    fused = {("com.microsoft", "Attention"), ("com.microsoft", "MultiHeadAttention")}
    assert others & {*fused, *((each.domain, each.name) for each in OPERATORS if each.attention)}
    assert {(f.domain, f.name) for f in proto.functions} == others - fused
    assert {domain for domain, _ in others - fused} <= {"ai.coda"}
    inside = {(node.domain, node.op_type) for function in proto.functions for node in function.node}
    assert {kind for kind in inside if kind[0]} <= fused


def test_nodes_carry_layer_and_role(variant: Variant):
    routers = {}
    for node in onnx.load(str(variant.bundle.model_path)).graph.node:
        tags = {p.key: p.value for p in node.metadata_props}
        assert set(tags) <= {"coda.layer", "coda.role"}
        assert tags["coda.role"]
        if node.domain:
            assert tags.get("coda.layer") in ("0", "1") or tags["coda.role"] == "embeddings"
        routers[tags.get("coda.layer"), tags["coda.role"]] = True
    for layer, module in enumerate(variant.model.coda_layers()):
        beside = {"adapter"} if module.adapter else set()
        beside |= {"stand_in"} if module.stand_in and layer in variant.routed else set()
        assert {role for own, role in routers if own == str(layer)} >= {"attention", "feed_forward", *beside}
        assert ((str(layer), "router") in routers) == (layer in variant.routed)


def test_nothing_tells_where_it_was_built(variant: Variant):
    for path in variant.bundle.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (str(Path.cwd()), "site-packages", "stack_trace", "pkg.torch", str(variant.bundle.folder)):
                assert trace.encode() not in content, f"{path.name} holds {trace}"


def test_manifest_says_how_layers_route(variant: Variant):
    layers = variant.bundle.manifest.layers
    assert [x.reduction for x in layers] == [str(x.reduction) for x in variant.model.coda_layers()]
    config, thin = variant.model.coda_config, [i in variant.routed for i in range(len(layers))]
    assert [x.stand_in for x in layers] == [config.stand_in * routed for routed in thin]
    assert [x.key_value_rank for x in layers] == [config.key_value_rank * routed for routed in thin]
    assert [x.slots for x in layers] == [
        x.slots(variant.model.signature.max_length) for x in variant.model.coda_layers()
    ]
    assert variant.bundle.variant.operators.get("ai.coda::Route", 0) == len(variant.routed)


def test_outputs_of_each_task(variant: Variant):
    n = variant.model.signature.max_length
    shapes = {name: value.shape for name, value in variant.bundle.run(variant.case(2, n, 0).inputs).items()}
    assert (
        shapes
        == {
            "sequence-classification": {"logits": (2, 3)},
            "token-classification": {"logits": (2, n, 3)},
            "feature-extraction": {"last_hidden_state": (2, n, 32), "sentence_embedding": (2, 32)},
        }[variant.bundle.manifest.task]
    )


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A freshly converted model at r = 1: adapters are zero, so it is the backbone."""
    model = convert(tiny_backbone("mpnet"), CodaConfig(reduction=4))
    return compile(model, CompileOptions(reduction=1), output=tmp_path_factory.mktemp("untrained") / "b")


@many
@given(**shapes)
def test_dense_and_untrained_equals_transformers(untrained: Bundle, batch: int, tokens: int, seed: int):
    random = np.random.default_rng(seed)
    tokens = min(tokens, untrained.manifest.signature.max_length)
    ids = random.integers(4, 100, (batch, tokens))
    mask = (np.arange(tokens) < random.integers(1, tokens + 1, (batch, 1))).astype(np.int64)
    with torch.inference_mode():
        expected = tiny_backbone("mpnet")(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    assert_close(untrained.run({"input_ids": ids, "attention_mask": mask}), {"logits": expected})


def test_dense_needs_no_routing_operators(untrained: Bundle):
    own = {name for name in untrained.variant.operators if name.startswith("ai.coda")}
    assert own == {f"ai.coda::{name}" for name in ("AddAdapter", "AddGelu", "AddNorm", "CrossAttention", "EmbedNorm")}


def test_a_single_token_runs_dense(compiled: Bundle, tmp_path: Path):
    """k = n = 1: gates are exactly 1, so r makes no difference."""
    model = tiny_coda("bert", CodaConfig(reduction=1))
    for token in (2, 17, 99):
        ids = torch.tensor([[token]])
        with torch.inference_mode():
            expected = model(input_ids=ids).logits.numpy()
        np.testing.assert_allclose(compiled.run({"input_ids": ids.numpy()})["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_plain_hugging_face_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str):
    task = {"bert": "sequence-classification", "roberta": "token-classification"}[family]
    backbone = tiny_backbone(family, task)
    backbone.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    bundle = compile(tmp_path / "hf", output=tmp_path / "bundle")
    assert bundle.manifest.task == task
    own = {name for name in bundle.variant.operators if "::" in name}
    ours = {f"ai.coda::{name}" for name in ("SelfAttention", "CrossAttention", "AddNorm", "AddGelu", "EmbedNorm")}
    assert own <= {"com.microsoft::MultiHeadAttention", *ours}
    assert [(x.reduction, x.bottleneck) for x in bundle.manifest.layers] == [("1", 0)] * 2
    assert (bundle.folder / "tokenizer.json").is_file()
    ids = np.random.default_rng(0).integers(4, 100, (3, 21))
    with torch.inference_mode():
        expected = backbone(torch.from_numpy(ids)).logits.numpy()
    assert_close(bundle.run({"input_ids": ids}), {"logits": expected})
    onnx.checker.check_model(str(bundle.model_path), full_check=True)


def test_equal_scores_select_the_first_tokens(copied: Path):
    """Ties constructed: with routers of zero all scores are equal."""
    path = copied / "model.onnx"
    proto = onnx.load(str(path))
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("router.weight"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))
    onnx.save(proto, str(path))
    mask = np.array([[1] * 9, [1] * 4 + [0] * 5, [0, 1, 1, 0, 1, 1, 0, 1, 0]])
    ids = np.full((3, 9), 7)
    bundle = Bundle(copied)
    _, decisions = RoutingProbe.of(bundle).run(bundle.prepare({"input_ids": ids, "attention_mask": mask}))
    for decision in decisions:
        assert (decision.scores == 0).all()
        assert [decision.selected(e) for e in range(3)] == [[0, 1, 2, 3, 4], [0, 1], [1, 2, 4]]


def test_manifest_of_a_model_without_adapters_is_dense(tmp_path: Path):
    model = convert(tiny_backbone("distilbert"), CodaConfig(reduction=4, bottleneck=0))
    bundle = compile(model, output=tmp_path / "b")
    assert [(layer.reduction, layer.slots) for layer in bundle.manifest.layers] == [("1", 66)] * 2
    assert json.loads((bundle.folder / "config.json").read_text())["model_type"] == "distilbert"
