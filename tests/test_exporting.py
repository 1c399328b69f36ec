"""Models share an export where their graphs are the same, and only there."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import onnx_ir as ir
import pytest
import tests.exporting
import torch
from tests.conftest import tiny_backbone, tiny_coda
from tests.exporting import Exports, export_anew, structure
from torch import nn

from coda_compile.precision import get_precision
from coda_compile.sources import read_source
from coda_models import CodaConfig, CodaModel, convert, load, save

CONFIG = CodaConfig(reduction=2, attention="k_to_all", stand_in=4, key_value_rank=6)


def serialized(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


@pytest.mark.parametrize(("family", "precision"), [("bert", "fp32"), ("mpnet", "int8")])
def test_the_graph_of_another_model_with_its_own_weights_is_its_export(
    family: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = (tiny_coda(family, CONFIG, seed) for seed in (0, 1))
    quantise = get_precision(precision).quantise
    if quantise is not None:
        for model in (first, second):
            quantise(model, [], True)
    alone: list[bytes] = []

    def noted(model: CodaModel, opset: int) -> ir.Model:
        exported = export_anew(model, opset)
        alone.append(serialized(exported))
        return exported

    monkeypatch.setattr(tests.exporting, "export_anew", noted)
    exports = Exports(tmp_path / "exports")
    exports.export(first, 20)
    monkeypatch.setattr(tests.exporting, "export_anew", None)
    noted(second, 20)
    assert alone[0] != alone[1]
    assert [serialized(exports.export(model, 20)) for model in (first, second)] == alone
    assert serialized(Exports(tmp_path / "exports").export(second, 20)) == alone[1]  # in another worker


def test_files_are_those_of_the_same_model_weights_and_options(tmp_path: Path):
    exports, model, other = Exports(tmp_path / "exports"), tiny_backbone("bert"), tiny_backbone("bert", seed=1)
    made: list[tuple[nn.Module, str]] = []

    def export(model: nn.Module, folder: Path, *, name: str) -> None:
        made.append((model, name))
        (folder / name).write_text(str(len(made)))

    def copy(model: nn.Module, name: str) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        exports.copy(model, {"name": name}, export, folder)
        return (folder / name).read_text()

    assert [copy(model, "a"), copy(tiny_backbone("bert"), "a"), copy(model, "b"), copy(other, "a")] == list("1123")
    assert made == [(model, "a"), (model, "b"), (other, "a")]
    exports = Exports(tmp_path / "exports")  # in another worker
    assert copy(other, "a") == "3"


def _elsewhere(model: CodaModel) -> None:
    model.coda_config = replace(model.coda_config, backbone="elsewhere", backbone_sha256="0" * 64)
    model.hf_config.name_or_path = "elsewhere"
    model.hf_config.id2label = dict(enumerate("abc"))
    model.hf_config.sentence_transformers = {"activation_fn": "torch.nn.Sigmoid"}


def _other_weights(model: CodaModel) -> None:
    torch.nn.init.normal_(next(model.coda_layers()).block.norm1.weight)


@pytest.mark.parametrize("change", [_elsewhere, _other_weights])
def test_names_and_values_change_no_graph(change: Callable[[CodaModel], None]):
    before, model = (tiny_coda("bert", CONFIG) for _ in "ab")
    change(model)
    assert structure(model) == structure(before)


def test_a_folder_and_a_checkpoint_share_with_what_is_in_memory(tmp_path: Path):
    tiny_backbone("bert", seed=3).save_pretrained(tmp_path / "folder")
    dense = convert(tiny_backbone("bert"), CodaConfig(reduction=1, bottleneck=0)).eval()
    assert structure(read_source(tmp_path / "folder").model) == structure(dense)
    routed = tiny_coda("bert", CONFIG)
    save(routed, tmp_path / "routed.pt")
    assert structure(load(tmp_path / "routed.pt").model.eval()) == structure(routed)


def _other_prompts(model: CodaModel) -> None:
    model.prompt_tokens = 3


def _other_length(model: CodaModel) -> None:
    model.signature = replace(model.signature, max_length=32)


def _other_attention(model: CodaModel) -> None:
    next(model.coda_layers()).attention = "k_to_k"


def _other_schedule(model: CodaModel) -> None:
    layer = next(model.coda_layers())
    layer.schedule = replace(layer.schedule, iterations=7)


def _other_norm(model: CodaModel) -> None:
    next(model.coda_layers()).block.norm1.eps = 0.5


def _tied(model: CodaModel) -> None:
    first, second = model.coda_layers()
    first.block.norm1.weight = second.block.norm1.weight


def _other_constant(model: CodaModel) -> None:
    positions = model.embeddings.position_ids
    assert isinstance(positions, torch.Tensor)
    positions += 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.set_reduction(Fraction(5, 2)),
        _other_attention,
        lambda model: model.double(),
        lambda model: get_precision("int8").quantise(model, [], True),
        _other_prompts,
        _other_length,
        _other_schedule,
        _other_norm,
        _tied,
        _other_constant,
    ],
)
def test_whatever_changes_the_graph_is_another_structure(change: Callable[[CodaModel], None]):
    before, model = (tiny_coda("bert", CONFIG) for _ in "ab")
    assert structure(model) == structure(before)
    change(model)
    assert structure(model) != structure(before)
