"""From torch to a graph whose CoDA operators are single, tagged nodes."""

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from tests.conftest import TINY, tiny_coda
from torch import nn

from coda_compile.errors import CompileError
from coda_compile.export import export, save_onnx
from coda_models import CodaConfig
from coda_models.cost import layer_multiply_adds
from coda_models.layers.feed_forward import FeedForward

ROLES = ("feed_forward", "norm", "block")


def test_axes_have_readable_names(raw: ir.Model):
    for value in raw.graph.inputs:
        assert [str(d.value) for d in value.shape] == ["batch", "sequence"]
    (logits,) = raw.graph.outputs
    assert [d if isinstance(d, int) else d.value for d in logits.shape] == ["batch", 3]


def test_one_node_for_each_operator(raw: ir.Model):
    own = Counter(node.op_type for node in raw.graph if node.domain == "ai.coda")
    assert own == {"Route": 2, "TakeTokens": 2, "PutTokens": 2, "Adapter": 2}
    assert not raw.functions
    assert {node.domain for node in raw.graph} == {"", "ai.coda"}


def test_attributes_of_a_route_node(raw: ir.Model):
    node = next(node for node in raw.graph if node.op_type == "Route")
    plain = {name: attribute.value for name, attribute in node.attributes.items()}
    assert plain == pytest.approx(
        {
            "numerator": 2,
            "denominator": 1,
            "iterations": 20,
            "epsilon_start": 4.0,
            "epsilon_decay": 0.7,
            "epsilon_final": 0.03,
        }
    )


def test_tags_are_those_of_the_modules(raw: ir.Model):
    roles = {"Route": "routing", "TakeTokens": "routing", "PutTokens": "routing", "Adapter": "adapter"}
    for layer in ("0", "1"):
        own = [node for node in raw.graph if node.metadata_props.get("coda.layer") == layer]
        for kind, role in roles.items():
            assert [node.metadata_props["coda.role"] for node in own if node.op_type == kind] == [role]
        found = {node.metadata_props["coda.role"] for node in own}
        assert found >= {"attention", "feed_forward", "norm", "router", "adapter", "routing"}
    outside = {node.metadata_props["coda.role"] for node in raw.graph if "coda.layer" not in node.metadata_props}
    assert outside == {"model", "embeddings", "head"}


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm", "mpnet"])
def test_stand_ins_and_thin_keys_have_roles(family: str):
    config = CodaConfig(reduction=2, attention="k_to_all", stand_in=4, key_value_rank=6)
    graph = export(tiny_coda(family, config), 20).graph
    for layer in ("0", "1"):
        own = [node for node in graph if node.metadata_props.get("coda.layer") == layer]
        products = Counter(node.metadata_props["coda.role"] for node in own if node.op_type == "MatMul")
        thin = {"stand_in": 2, "key_value": 2}
        assert products == {**thin, "router": 1, "attention": 6, "feed_forward": 2}
        assert {node.metadata_props["coda.role"] for node in own if node.op_type == "SetTokens"} == {"routing"}


class Gated(FeedForward):
    """A feed-forward of another package: down(gate · up)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(8, 32)

    @property
    def inner(self) -> int:
        return 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, 32] -> the same shape."""
        made: torch.Tensor = self.down(self.gate(x) * self.up(x))
        return made


def test_norms_and_feed_forwards_of_other_types_have_their_roles():
    model = tiny_coda("roberta-prelayernorm", CodaConfig(reduction=2))
    for layer in model.coda_layers():
        layer.block.feed_forward, layer.block.norm1, layer.block.norm2 = Gated(), nn.RMSNorm(32), nn.Identity()
    for layer in ("0", "1"):
        own = [node for node in export(model, 20).graph if node.metadata_props.get("coda.layer") == layer]
        by_role = {role: Counter(n.op_type for n in own if n.metadata_props["coda.role"] == role) for role in ROLES}
        assert by_role["feed_forward"]["MatMul"] == 3
        assert by_role["norm"]
        assert not by_role["norm"]["MatMul"]
        assert set(by_role["block"]) <= {"Add", "Identity"}
    assert sum(layer_multiply_adds(model, 8, 1)) == 2 * 8 * (4 * 32**2 + 2 * 32 * 12 + 2 * 32 * 64 + 2 * 8 * 32)


def test_tables_of_rotary_positions_are_stored_once_for_layers_of_a_kind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TINY, "modernbert", {**TINY["modernbert"], "num_hidden_layers": 4})
    graph = export(tiny_coda("modernbert", CodaConfig(reduction=2)), 20).graph
    assert len([name for name in graph.initializers if ".rotary." in name]) == 2 * 2  # cos and sin, global and local


def test_at_r_1_the_graph_has_nothing_of_stand_ins():
    config = CodaConfig(reduction=1, attention="k_to_all", stand_in=4, key_value_rank=6)
    graph = export(tiny_coda("bert", config), 20).graph
    assert not {node.metadata_props["coda.role"] for node in graph} & {"stand_in", "key_value", "router"}
    used = {value.name for node in graph for value in node.inputs if value is not None}
    assert not [name for name in used if "stand_in" in str(name) or "key_value" in str(name)]


def test_what_torch_cannot_export_is_one_sentence():
    model = tiny_coda("bert", CodaConfig(reduction=2))

    class Stubborn(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum().item() > 0) if x.sum() > 0 else x

    model.head = torch.nn.Sequential(model.head, Stubborn())
    with pytest.raises(CompileError, match=r"^torch could not export this model: ") as caught:
        export(model, 20)
    assert "\n" not in str(caught.value)


def test_an_interrupt_is_no_failure_of_the_export():
    """torch's own clean-up may fail on the way out, and stand before the interrupt that caused it."""
    model = tiny_coda("bert", CodaConfig(reduction=2))

    class Interrupted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                raise KeyboardInterrupt
            finally:
                raise AssertionError("a mode that is not there any more")

    model.head = torch.nn.Sequential(model.head, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        export(model, 20)


def test_weights_beyond_the_limit_lie_beside_the_model(raw: ir.Model, tmp_path: Path):
    save_onnx(raw, tmp_path / "one.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]
    save_onnx(raw, tmp_path / "two.onnx", external_above=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
    one, two = (onnx.load(str(tmp_path / name)) for name in ("one.onnx", "two.onnx"))
    for a, b in zip(one.graph.initializer, two.graph.initializer, strict=True):
        assert a.name == b.name
        assert (onnx.numpy_helper.to_array(a) == onnx.numpy_helper.to_array(b)).all()
