"""One mask of the slots in use for layers of one reduction; what the model computes stays the same to the last bit."""

import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import BEFORE, compare
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile.passes import operator_counts, run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.share_slot_masks import ShareSlotMasks
from coda_compile.passes.upstream import EliminateCommonSubexpressions, LiftConstants, RemoveUnused
from coda_models import CodaConfig

AFTER = (EliminateCommonSubexpressions(), RemoveUnused(), LiftConstants(), AttachFunctions())


def routes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Route"]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_layers_of_one_reduction_share_masks_bit_for_bit(family: str):
    model = tiny_coda(family, CodaConfig(reduction=2))
    whole = export(model, opset=20)
    run_passes(whole, (*BEFORE, *AFTER))
    compiled, _ = compare(model, ShareSlotMasks(), after=AFTER, atol=0)
    assert operator_counts(compiled)["Not"] == operator_counts(whole)["Not"] - 1
    first, second = routes(compiled)
    assert first.outputs[2].uses()
    assert not second.outputs[2].uses()
    assert not ShareSlotMasks()(compiled).modified


def test_thin_keys_of_layers_of_one_reduction_share_them_too():
    model = tiny_coda("bert", CodaConfig(reduction=2, attention="k_to_all", stand_in=4, key_value_rank=6))
    compiled, _ = compare(model, ShareSlotMasks(), after=AFTER, atol=0)
    used = [node.inputs[2] for node in compiled.graph if node.op_type == "SetTokens"]
    assert used == [routes(compiled)[0].outputs[2]] * 2


@pytest.mark.parametrize(
    "config",
    [
        CodaConfig(reduction=("2", "5/2")),  # other slots
        CodaConfig(reduction=("1", "2")),  # nobody to share with
        CodaConfig(reduction=2, attention="k_to_all"),  # nobody asks which are in use
    ],
)
def test_nothing_else_is_shared(config: CodaConfig):
    compiled = export(tiny_coda("bert", config), opset=20)
    run_passes(compiled, BEFORE)
    assert not ShareSlotMasks()(compiled).modified
