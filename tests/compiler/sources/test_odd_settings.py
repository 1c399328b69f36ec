"""Folders with one odd value in one of their JSON files are read, or refused with one sentence."""

import random
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adapters
import peft
import pytest
from adapters.composition import Stack
from sentence_transformers.sentence_transformer import modules
from tests.compiler.sources.library_adapters import CONFIGS, library_model, saved
from tests.conftest import tiny_backbone, tiny_coda
from tests.json_files import change, odd_changes
from tests.sentences import save_sentence
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from coda_compile.sources import read_source
from coda_models import CodaConfig
from coda_ops.errors import CodaError
from coda_targets import Bundle

pytestmark = pytest.mark.slow
_TRIES = 300  # of each kind of folder
_SECONDS = 30  # an attempt, after which it counts as one without an end
_MEMORY = 16 << 30  # bytes of address space, of which libraries alone take some
_LONGEST = 600  # letters of a sentence


def _classifier(folder: Path) -> None:
    tiny_backbone("bert").save_pretrained(folder)


def _tagger(folder: Path) -> None:
    tiny_backbone("mpnet", "token-classification").save_pretrained(folder)


def _checkpoint(folder: Path) -> None:
    tiny_coda("bert", CodaConfig(reduction=2)).save_pretrained(folder)


def _peft(settings: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        base = folder.with_name("base")
        tiny_backbone("bert").save_pretrained(base)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        peft.get_peft_model(model, settings).save_pretrained(folder)

    return save


def _adapter(settings: Any) -> Callable[[Path], object]:
    return lambda folder: saved(folder, settings)


def _stack(folder: Path) -> None:
    model = library_model(folder.with_name("base"))
    for name in "ab":
        model.add_adapter(name, config=adapters.SeqBnConfig(reduction_factor=8))
    model.add_classification_head("a", num_labels=2)
    model.active_adapters = Stack("a", "b")
    model.save_adapter_setup(str(folder), model.active_adapters, head_setup="a")


_KINDS: dict[str, Callable[[Path], object]] = {
    "classifier": _classifier,
    "tagger": _tagger,
    "ELECTRA": lambda folder: tiny_backbone("electra").save_pretrained(folder),
    "ModernBERT": lambda folder: tiny_backbone("modernbert").save_pretrained(folder),
    "checkpoint": _checkpoint,
    "PEFT's LoRA": _peft(peft.LoraConfig(task_type="SEQ_CLS", r=2)),
    "PEFT's IA3": _peft(peft.IA3Config(task_type="SEQ_CLS")),
    "PEFT's prefixes": _peft(peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)),
    "PEFT's P-tuning": _peft(
        peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=8)
    ),
    **{f"AdapterHub's {name}": _adapter(CONFIGS[name]) for name in ("Pfeiffer", "LoRA", "prefix")},
    "AdapterHub's invertible": _adapter(CONFIGS["Pfeiffer with an invertible adapter"]),
    "AdapterHub's Stack": _stack,
}


@contextmanager
def _within_bounds() -> Iterator[None]:
    """An attempt that takes too long or too much memory fails."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end after {_SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, hard))
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn of odd values, each in its way
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check(folder: Path, attempt: Callable[[Path], object], seed: int = 0) -> None:
    """A sample of the changes is met without an error, or refused with one sentence; some are."""
    changes = odd_changes(folder)
    refused, wrong = 0, list[str]()
    for file, keys, odd in random.Random(seed).sample(changes, min(_TRIES, len(changes))):
        where = f"{file.relative_to(folder)}: {keys} is {str(odd)[:30]!r}"
        before = file.read_text("utf-8")
        file.write_text(change(before, keys, odd), "utf-8")
        try:
            with _within_bounds():
                attempt(folder)
        except CodaError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > _LONGEST:
                wrong.append(f"{where}: no sentence: {error}")
        except Exception as error:  # any other is what is looked for
            wrong.append(f"{where}: {type(error).__name__}: {error}")
        file.write_text(before, "utf-8")
    assert not wrong, "\n".join(wrong)
    assert refused


@pytest.mark.parametrize("kind", _KINDS)
def test_a_folder(kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    folder = tmp_path / "model"
    _KINDS[kind](folder)
    tokenizer.save_pretrained(folder)
    _check(folder, read_source, seed=sorted(_KINDS).index(kind))


def test_sentence_transformers(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    folder = save_sentence(tmp_path / "model", tokenizer, modules.Dense(32, 8), modules.Normalize())
    _check(folder, read_source)


def test_a_bundle(copied: Path):
    def use(folder: Path) -> None:
        bundle = Bundle(folder)
        bundle.check()
        bundle.predict(["good film"])

    _check(copied, use)
