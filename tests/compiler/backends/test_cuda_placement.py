"""What onnxruntime's CUDA provider makes of bundles for target cuda: seen on a stand-in, so no GPU is needed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cuda_stand_in.build import StandIn, StandInError, missing_symbols
from tests.cuda_stand_in.observe import Observation, observe
from transformers import AutoConfig

from coda_compile import CompileOptions, compile
from coda_models import CodaConfig, CodaModel, convert
from coda_models.backbone import build_backbone
from coda_targets import Bundle

pytestmark = pytest.mark.slow

REVIEWS = Path(__file__).parents[3] / "examples/reviews.pt"
SHAPES = ((1, 512), (32, 512))
# Sizes of tensors: onnxruntime computes them on the CPU, where it keeps them.
SHAPE_ARITHMETIC = {
    "Add",
    "Concat",
    "Div",
    "Gather",
    "Mul",
    "Range",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
}


@dataclass(frozen=True)
class Case:
    """A model for target cuda, and how much it may ask of the card.

    Attributes:
        model: in ``cuda_bundle``.
        precision: as on the command line.
        kernels: whether our kernels for CUDA are loaded; function bodies compute otherwise.
        layers: of the encoder.
        routed: of them.
        launches: kernels, products and memsets at most, for each of ``SHAPES``.
    """

    model: str
    precision: str
    kernels: bool
    layers: int
    routed: int
    launches: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.model}-{self.precision}-{'kernels' if self.kernels else 'bodies'}"


# Launches of the demo in float32 with kernels, 1 x 512, by benchmarks/cuda_launches.py:
#   products   51: layers 36, routers 5, pooling and head 2, attention of the four layers too short for the fused kernel 8
#   layers     42: biases 18, sums with their norms 12, GELUs with their biases 6, splits 6
#   attention  28: masks 6, fused 2; unfused: heads with biases 12, softmax 4, heads back 4
#   adapters   12: ReLU 6, sums 6
#   routing    15: Route, TakeTokens and PutDifference of five layers
#   others     23: embeddings, masks, pooling and head
# As function bodies, the routing of a layer is 256 launches instead of 3, most of them 20 iterations of the soft top-k at
# 11. In float16, attention is one launch at every length, and what routers read is cast.
CASES = [
    Case("dense", "fp32", False, 6, 0, (123, 124)),
    Case("dense", "fp16", False, 6, 0, (124, 125)),
    Case("demo", "fp32", False, 6, 5, (1435, 1336)),
    Case("demo", "fp16", False, 6, 5, (1422, 1323)),
    Case("demo", "fp32", True, 6, 5, (171, 172)),
    Case("demo", "fp16", True, 6, 5, (153, 154)),
    Case("base", "fp32", False, 3, 3, (852, 794)),
    Case("base", "fp16", False, 3, 3, (841, 783)),
    Case("base", "fp32", True, 3, 3, (94, 96)),
    Case("base", "fp16", True, 3, 3, (80, 82)),
    Case("thin", "fp32", False, 3, 3, (882, 824)),
    Case("thin", "fp16", False, 3, 3, (889, 831)),
    Case("thin", "fp32", True, 3, 3, (136, 138)),
    Case("thin", "fp16", True, 3, 3, (140, 142)),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def base(**form: Any) -> CodaModel:
    """Layers of BERT-base with random weights, the first one routed, too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", num_hidden_layers=3, vocab_size=1000)
    model = convert(build_backbone(config, "sequence-classification"), CodaConfig(reduction="4", **form))
    for layer in model.coda_layers():
        if layer.router is not None:
            torch.nn.init.normal_(layer.router.weight, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def cuda_bundle(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a bundle for target cuda in both precisions, compiled once."""
    folder = tmp_path_factory.mktemp("cuda")
    both = CompileOptions(target="cuda", precision=("fp32", "fp16"))
    sources: dict[str, tuple[Path | CodaModel, CompileOptions]] = {
        "demo": (REVIEWS, replace(both, backbone=encoder)),
        "dense": (REVIEWS, replace(both, backbone=encoder, reduction=1)),
        "base": (base(), both),
        "thin": (base(attention="k_to_all", stand_in=64, key_value_rank=64), both),
    }

    def compiled(model: str) -> Path:
        output = folder / model
        if not output.is_dir():
            source, options = sources[model]
            compile(source, options, output=output)
        return output

    return compiled


@pytest.fixture(scope="module")
def look(
    stand_in: StandIn, cuda_bundle: Callable[[str], Path], request: pytest.FixtureRequest
) -> Callable[..., Observation]:
    """What the provider makes of a case, looked at once."""
    seen: dict[tuple[Case, bool], Observation] = {}

    def at(case: Case, *, cuda_graph: bool = False) -> Observation:
        if (case, cuda_graph) not in seen:
            kernels = request.getfixturevalue("cuda_kernels") if case.kernels else None
            path = Bundle(cuda_bundle(case.model), target="cuda", precision=case.precision).model_path
            seen[case, cuda_graph] = observe(stand_in, path, SHAPES, cuda_graph=cuda_graph, kernels=kernels)
        return seen[case, cuda_graph]

    return at


@cases
def test_nothing_is_copied_between_the_cpu_and_the_card(case: Case, look: Callable[..., Observation]):
    seen = look(case)
    assert seen.copies == 0
    for run in seen.runs:
        assert {event.name for event in run.later if event.event == "copy"} <= {"device to device"}


@cases
def test_only_sizes_are_computed_on_the_cpu(case: Case, look: Callable[..., Observation]):
    on_cpu = look(case).on_cpu
    assert on_cpu
    others = [
        node
        for node in on_cpu
        if node.operator not in SHAPE_ARITHMETIC or not node.output or {*node.input, *node.output} != {"int64"}
    ]
    assert others == []


@cases
def test_launches_are_few(case: Case, look: Callable[..., Observation]):
    for run, most in zip(look(case).runs, case.launches, strict=True):
        assert 0 < run.launches <= most, run.by_name().most_common(20)


@cases
def test_every_layer_is_fused(case: Case, look: Callable[..., Observation]):
    operators = look(case).operators
    assert operators["MultiHeadAttention"] == case.layers
    assert operators["SkipLayerNormalization"] == 2 * case.layers
    assert operators["BiasGelu"] == case.layers
    assert operators["Route"] == (case.routed if case.kernels else 0)


@pytest.mark.parametrize("case", [case for case in CASES if case.precision == "fp16"], ids=str)
def test_half_precision_costs_few_casts(case: Case, look: Callable[..., Observation]):
    """One before the pooling, and two a routed layer: what its router reads, and what its gates weigh."""
    (single,) = (one for one in CASES if str(one) == str(case).replace("fp16", "fp32"))
    more = look(case).operators["Cast"] - look(single).operators["Cast"]
    assert more <= 1 + 2 * case.routed


@cases
def test_one_cuda_graph_a_shape(case: Case, look: Callable[..., Observation]):
    for plain, run in zip(look(case).runs, look(case, cuda_graph=True).runs, strict=True):
        told = Counter(event.event for event in run.first)
        assert (told["capture begins"], told["capture ends"], told["refused in capture"]) == (1, 1, 0)
        (launch,) = (event for event in run.later if event.event != "synchronise")
        assert (launch.event, launch.size) == ("graph launch", plain.launches + plain.count("copy"))


def test_the_stand_in_has_all_that_our_kernels_need(stand_in: StandIn, cuda_kernels: Path):
    assert missing_symbols(cuda_kernels, stand_in.libraries) == []


def test_the_form_for_cpu_would_be_found(stand_in: StandIn, compiled: Bundle):
    """Its Route reads the number of tokens, which is on the CPU, where it computes."""
    seen = observe(stand_in, compiled.model_path, [(1, 32)])
    assert seen.copies == seen.operators["MemcpyFromHost"] == len(compiled.manifest.layers)
    assert "host to device" in {event.name for event in seen.runs[0].later if event.event == "copy"}
    with pytest.raises(StandInError, match="cannot use the graph capture feature"):
        observe(stand_in, compiled.model_path, [(1, 32)], cuda_graph=True)
