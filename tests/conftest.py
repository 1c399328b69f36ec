"""Small models of every family, a tokenizer made on the spot, and one compiled bundle for the tests that only read."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from coda_models import CodaConfig, CodaModel, convert
from coda_models.backbone import build_backbone
from coda_models.digest import tensor_digest
from coda_ops import native
from coda_targets import Bundle

torch.set_num_threads(1)

TINY: dict[str, dict[str, int]] = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
    "roberta": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 48},
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
    """A converted model whose adapters and routers are random too, so that everything matters."""
    config = config or CodaConfig()
    model = convert(tiny_backbone(family, config.task, seed), config)
    torch.manual_seed(seed + 1)
    for layer in model.coda_layers():
        if layer.adapter is not None:
            torch.nn.init.normal_(layer.adapter.up, std=0.1)
        if layer.router is not None:
            torch.nn.init.normal_(layer.router.weight, std=0.3)
    return model.eval()


def example_inputs(model: CodaModel, batch: int, length: int) -> dict[str, Tensor]:
    """Random inputs of a model, all valid, for torch."""
    return {name: torch.from_numpy(array) for name, array in model.signature.random(batch, length).items()}


@pytest.fixture(scope="module")
def exported_once() -> Iterator[None]:
    """Compiling a tiny model is mostly exporting it; tests of a module that compile the same ones may share that.

    For modules that look at what becomes of a graph. What went through a file keeps its meaning and not every byte.
    """
    from coda_compile.sources import torch_model

    export, exported = torch_model.export, dict[str, onnx.ModelProto]()

    def once(model: CodaModel, opset: int) -> ir.Model:
        layers = [(layer.reduction, layer.attention, layer.schedule) for layer in model.coda_layers()]
        taken = (model.signature.names, model.prompt_tokens)
        parts = (model, model.coda_config, taken, layers, tensor_digest(model.state_dict()), opset)
        key = repr(parts)
        if key not in exported:
            exported[key] = ir.to_proto(export(model, opset))
        return ir.from_proto(exported[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_model, "export", once)
        yield


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
    from coda_compile.export import export

    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coda_compile.sources.torch_model.export", export)  # whatever the first module that asks shares
        return compile(tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(tokenizer=tokenizer), output=folder)


@pytest.fixture
def copied(compiled: Bundle, tmp_path: Path) -> Path:
    """A copy of the compiled bundle that a test may damage."""
    import shutil

    return Path(shutil.copytree(compiled.folder, tmp_path / "bundle"))
