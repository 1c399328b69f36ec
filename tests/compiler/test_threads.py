"""What becomes part of a bundle is computed in one thread, whatever torch would use."""

from collections.abc import Iterator

import pytest
import torch
from tests.conftest import tiny_coda

from coda_compile.options import CompileOptions
from coda_compile.precision import get_precision
from coda_compile.prepare.fit_ood import Classifier, detector, embed
from coda_compile.sources.torch_model import TorchModel
from coda_compile.threads import map_in_threads, one_thread
from coda_models import CodaConfig


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_block_in_one_thread():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_batches_are_computed_in_one_thread_each_and_come_in_order():
    def compute(number: int) -> tuple[int, int, bool]:
        return number, torch.get_num_threads(), torch.is_inference_mode_enabled()

    assert map_in_threads(compute, range(40)) == [(number, 1, True) for number in range(40)]
    assert torch.get_num_threads() == 2


def test_what_is_calibrated(tokenizer):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    source = TorchModel.in_memory(model)
    source.apply(CompileOptions(tokenizer=tokenizer))
    seen = counted(source.model)
    source.quantise(get_precision("int8-static"), [model.signature.random(1, 9)])
    source.prune(0.5, [model.signature.random(1, 9)])
    assert set(seen) == {1}


@pytest.mark.parametrize("method", ["cosine", "energy"])
def test_what_a_score_is_fitted_on(tokenizer, method: str):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    seen = counted(model)
    features, logits = embed(Classifier.of(model), tokenizer, ["good", "bad film", "w1 w2 w3"] * 20)
    fitted = detector(method, features, logits, ["LABEL_0", "LABEL_1", "LABEL_2"] * 20, "here")
    assert set(seen) == {1}
    torch.set_num_threads(1)
    again = detector(method, *embed(model, tokenizer, ["good", "bad film", "w1 w2 w3"] * 20), ["LABEL_0"] * 60, "here")
    assert again.threshold == fitted.threshold


def counted(model: torch.nn.Module) -> list[int]:
    """The number of threads of every run from now on."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    return seen
