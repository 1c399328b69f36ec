"""fp16: weights are numbers of float16, routers and heads are not; what is compiled verifies, here on a CPU."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.errors import OptionError
from coda_compile.precision.fp16 import RECIPE
from coda_compile.verify.cases import kept_case
from coda_models import CodaConfig, CodaModel
from coda_ops import native
from coda_targets import Bundle


def quantise(model: CodaModel) -> None:
    """In place."""
    assert RECIPE.quantise is not None
    RECIPE.quantise(model, (), True)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    return compile(
        tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(target="cuda", precision="fp16"), output=folder
    )


def test_weights_are_rounded_but_for_routers_and_heads():
    model = tiny_coda("bert", CodaConfig(reduction=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantise(model)
    kept = [name for name in before if ".router." in name or name.startswith("head.")]
    assert len(kept) == 2 + 4
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        wanted = before[name] if name in kept or not tensor.is_floating_point() else before[name].half().float()
        assert torch.equal(tensor, wanted), name


def test_a_weight_beyond_the_range_is_refused_by_name(tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    with torch.no_grad():
        model.get_parameter("layers.1.block.feed_forward.up.weight")[0, 0] = 1e5
    with pytest.raises(
        OptionError,
        match=r"^layers\.1\.block\.feed_forward\.up\.weight has weights of up to 1e\+05, and float16 ends at 65504: "
        r"give another precision$",
    ):
        compile(model, CompileOptions(target="cuda", precision="fp16"), output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_large_router_is_none_of_its_business():
    model = tiny_coda("bert", CodaConfig(reduction=2))
    with torch.no_grad():
        model.get_parameter("layers.0.router.weight").fill_(1e5)
    quantise(model)
    assert float(model.state_dict()["layers.0.router.weight"].max()) == 1e5


def test_a_bundle_says_what_it_was_compiled_as(half: Bundle):
    assert (half.variant.name, half.variant.target, half.variant.precision) == ("cuda-fp16", "cuda", "fp16")
    report = json.loads((half.folder / "report.json").read_text("utf-8"))["variants"]["cuda-fp16"]
    assert report["parity"]["tolerances"] == {"gates": 1e-6, "outputs": 1e-2, "scores": 1e-2}
    scores = [case["scores"] for case in report["parity"]["cases"]]
    assert 1e-5 < max(scores) < 1e-2  # it is in float16, and verified by more than luck
    kinds = [tensor.data_type for tensor in onnx.load(str(half.model_path)).graph.initializer if len(tensor.dims) == 2]
    assert kinds.count(onnx.TensorProto.FLOAT16) > 10
    assert kinds.count(onnx.TensorProto.FLOAT) == 2 + 2  # routers and head


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_cpu_kernels_take_the_same_model(half: Bundle):
    """They are registered in every session where they are installed: a valid model must not fail for it."""
    case, found = kept_case(half.manifest.signature), []
    for library in (None, native.LIBRARIES["cpu"].path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if library is not None:
            options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(str(half.model_path), options, providers=["CPUExecutionProvider"])
        found.append(session.run(["logits"], dict(case.inputs))[0])
    np.testing.assert_allclose(*found, rtol=0, atol=1e-2)


@pytest.mark.parametrize("target", ["cpu", "openvino", "null"])
def test_only_gpus_have_it(target: str, tmp_path: Path):
    with pytest.raises(OptionError, match=rf"^target '{target}' has no precision 'fp16': use one of fp32, int8"):
        CompileOptions(target=target, precision="fp16").variants()


def test_tasks_cannot_share_it():
    with pytest.raises(OptionError, match=r"^several tasks cannot share precision fp16: compile each by itself$"):
        CompileOptions(target="cuda", precision="fp16").check(("topics", "moods"))
