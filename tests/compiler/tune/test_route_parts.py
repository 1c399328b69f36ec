"""Folders of adapter libraries are routed with what they have learned: saved, loaded, compiled, and dense at r = 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compiler.sources.library_adapters import CONFIGS, saved
from tests.compiler.sources.test_adapterhub import stacked
from tests.compiler.sources.test_peft import METHODS, TASKS, adapted, same, texts
from tests.compiler.tune.words import random_texts
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, RouteOptions, compile, route
from coda_compile.inspect.cost import dense_multiply_adds, multiply_adds
from coda_compile.inspect.predict import predict
from coda_compile.sources import read_source
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import load, save
from coda_models.fitting.sensitivity import CHOICES
from coda_targets.modalities import open_codec
from coda_targets.routing import RoutingProbe

SMALL: dict[str, Any] = {"stand_in": 8, "key_value_rank": 8}
pytestmark = [  # weights are random, and stand-ins no small part of layers as narrow as these
    pytest.mark.filterwarnings("ignore:the model gives the same label to all"),
    pytest.mark.filterwarnings("ignore:at r = .* the layers take"),
]


def _hub(config: str) -> Callable[[Path], Any]:
    return lambda folder: saved(folder, CONFIGS[config])


def _peft(method: str, task: str = "sequence-classification") -> Callable[[Path], Any]:
    return lambda folder: adapted(folder, METHODS[method](TASKS[task]), task=task)


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "Houlsby": _hub("Houlsby"),
    "Pfeiffer, norms of its own": _hub("norms of its own"),
    "parallel, a learned scale": _hub("a learned scale"),
    "layers left out": _hub("layers left out"),
    "prefix and parallel": _hub("prefix and parallel"),
    "AdapterHub prefix": _hub("prefix"),
    "AdapterHub LoRA with a head of its own": _hub("LoRA"),
    "a stack on an invertible adapter": stacked,
    "PEFT prefix": _peft("prefix"),
    "PEFT prefix, states": _peft("prefix", "feature-extraction"),
    "PEFT prefix, tags": _peft("prefix", "token-classification"),
    "PEFT prompt": _peft("prompt"),
    "P-tuning": _peft("P-tuning"),
}


@pytest.fixture
def made(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], tuple[Path, Any, Path]]:
    """A folder of some kind, its library's own model, and a file of texts."""
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(random_texts(80)) + "\n")

    def make(kind: str) -> tuple[Path, Any, Path]:
        eager = FOLDERS[kind](tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
        return tmp_path / "m", eager, lines

    return make


def last_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_what_is_routed_is_the_librarys_model(kind: str, made: Callable[[str], Any], tmp_path: Path):
    folder, eager, lines = made(kind)
    dense = read_source(folder)
    save(dense.model, tmp_path / "dense.pt", tokenizer=dense.tokenizer)
    same(tmp_path / "dense.pt", eager)
    front = route(folder, lines, RouteOptions(**SMALL), reductions=[2], output=tmp_path / "routed.pt")
    loaded = load(tmp_path / "routed.pt")
    routed = loaded.model
    assert routed.coda_config.parts == dense.model.coda_config.parts
    assert routed.signature.max_length == dense.model.signature.max_length
    assert routed.signature.names == dense.model.signature.names
    assert 0 < front.routed[0].share < 1.5
    bundle = compile(tmp_path / "routed.pt", output=tmp_path / "bundle")  # and verified
    assert [layer.reduction for layer in bundle.manifest.layers] == ["2", "2"]
    inputs = routed.signature.random(2, 13)
    with torch.inference_mode():
        output = routed(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    name = "sentence_embedding" if output.logits is None else "logits"
    np.testing.assert_allclose(bundle.run(inputs)[name], output[name].numpy(), atol=1e-4, rtol=1e-4)
    routed.set_reduction(1)
    ids = texts(1, 15)[0]
    torch.testing.assert_close(last_states(routed, ids), last_states(eager, ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Houlsby", "P-tuning", "prefix and parallel"])
def test_a_budget_and_steps_and_int8(kind: str, made: Callable[[str], Any], tmp_path: Path):
    """All that has been asked of models without such parts."""
    folder, _, lines = made(kind)
    options = RouteOptions(budget=0.8, stand_in=1, key_value_rank=1, steps=3)
    front = route(folder, lines, options, output=tmp_path / "routed.pt")
    assert front.chosen is not None
    assert set(front.chosen.choice.reductions) <= set(CHOICES)
    assert front.routed[0].share < 0.9
    bundle = compile(tmp_path / "routed.pt", CompileOptions(precision="int8"), output=tmp_path / "bundle")
    tokens = bundle.manifest.signature.max_length
    share = multiply_adds(bundle.manifest, tokens) / dense_multiply_adds(bundle.manifest, tokens)
    assert share < 1
    prompt, prefix = (read_source(folder).model.coda_config.parts.prompt, bundle.manifest.layers[0].prefix)
    assert (prompt, prefix) == {"Houlsby": (0, 0), "P-tuning": (5, 0), "prefix and parallel": (0, 3)}[kind]
    assert {layer.prompt for layer in bundle.manifest.layers} == {prompt}


def test_learned_tokens_in_front_are_routed_too(made: Callable[[str], Any], tmp_path: Path):
    """What the bundle records is checked again, and words are shown where they are."""
    folder, _, lines = made("P-tuning")
    route(folder, lines, RouteOptions(**SMALL), reductions=[2], output=tmp_path / "routed.pt")
    bundle = compile(tmp_path / "routed.pt", output=tmp_path / "bundle")
    verify_bundle(bundle)
    assert [layer.slots for layer in bundle.manifest.layers] == [33, 33]  # of 61 and 5
    text = "w5 w6 w7 w8 w9 w10"
    _, _, routed = next(predict(bundle, [text], routing=True))
    assert routed is not None
    assert routed.words == text.split()
    probe = RoutingProbe.of(bundle)
    _, decisions = probe.run(bundle.prepare(open_codec(bundle).encode([text]).inputs))
    for (layer, shown), decision in zip(routed.layers, decisions, strict=True):
        assert layer == decision.layer
        assert [i for i, heavy in enumerate(shown) if heavy] == [i - 6 for i in decision.selected(0) if 6 <= i < 12]
