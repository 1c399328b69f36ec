"""Slots in use, said once for layers of one reduction; what the model computes stays the same to the last bit."""

import numpy as np
import onnx_ir as ir
import pytest
from tests.compiler.passes.test_fuse_attention import outputs
from tests.conftest import tiny_coda

from coda_compile.export import export
from coda_compile.passes import operator_counts, run_passes
from coda_compile.passes.share_slot_masks import ShareSlotMasks
from coda_compile.verify.cases import Inputs, make_case
from coda_models import CodaConfig

BEFORE = ("fold_constants", "eliminate_identities")
AFTER = ("eliminate_common_subexpressions", "remove_unused", "lift_constants", "attach_functions")


def routes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Route"]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_layers_of_one_reduction_share_masks_bit_for_bit(family: str):
    model = tiny_coda(family, CodaConfig(reduction=2))
    exported = ir.to_proto(export(model, opset=20))
    case = make_case(Inputs.of(model), 3, 11, ragged=True, seed=0)
    results, masks = [], []
    for names in ((), ("share_slot_masks",)):
        compiled = ir.from_proto(exported)
        run_passes(compiled, (*BEFORE, *names, *AFTER))
        results.append(outputs(compiled, case.inputs))
        masks.append(operator_counts(compiled)["Not"])
    for plain, shared in zip(*results, strict=True):
        np.testing.assert_array_equal(shared, plain)
    assert masks[1] == masks[0] - 1
    first, second = routes(compiled)
    assert first.outputs[2].uses()
    assert not second.outputs[2].uses()
    assert not ShareSlotMasks()(compiled).modified


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
