"""A bundle that another one replaces while it is open: the old answers, or a sentence, and never some of both."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compiler.verify.test_reference_vectors import accept
from tests.targets.test_manifest import edit

import coda_targets.bundle
from coda_compile.bundling.replace_folder import replacing
from coda_compile.verify.reference_vectors import verify_bundle
from coda_targets import Bundle, BundleError
from coda_targets.modalities.text import TextCodec
from coda_targets.routing import RoutingProbe

IDS = np.array([[2, 5, 6, 7, 3]])
REPLACED = r"bundle was replaced since it was opened: open it again$"


def replace(folder: Path, **changes: Any) -> None:
    """By the same model under other labels, as a compilation does it."""
    changes = changes or {"labels": ["x", "y", "z"]}
    with replacing(folder) as new:
        for path in folder.rglob("*"):
            if path.is_file():
                (new / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                (new / path.relative_to(folder)).write_bytes(path.read_bytes())
        edit(new, **changes)


READERS: dict[str, Callable[[Bundle], Any]] = {
    "session": lambda bundle: bundle.run({"input_ids": IDS}),
    "check": lambda bundle: bundle.check(),
    "text": TextCodec,
    "probe": RoutingProbe.of,
    "verify": verify_bundle,
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_what_was_not_read_before_is_refused_after(copied: Path, name: str):
    bundle = Bundle(copied)
    replace(copied)
    with pytest.raises(BundleError, match=REPLACED):
        READERS[name](bundle)
    assert Bundle(copied).labels() == ("x", "y", "z")


def test_what_was_read_stays(copied: Path):
    bundle = Bundle(copied)
    before, codec = bundle.run({"input_ids": IDS})["logits"], TextCodec(bundle)
    replace(copied)
    np.testing.assert_array_equal(bundle.run({"input_ids": IDS})["logits"], before)
    record = codec.decode({"logits": before}, codec.encode(["good"]))[0]
    assert record["label"].startswith("LABEL_")


@pytest.mark.parametrize("when", ["before", "after"])
def test_replaced_while_the_model_is_loaded(copied: Path, when: str, monkeypatch: pytest.MonkeyPatch):
    open_session = coda_targets.bundle.open_session

    def slow(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            replace(copied)
        session = open_session(*arguments, **options)
        if when == "after":
            replace(copied)
        return session

    monkeypatch.setattr(coda_targets.bundle, "open_session", slow)
    bundle = Bundle(copied)
    for _ in "ab":  # a session of another bundle is not kept either
        with pytest.raises(BundleError, match=REPLACED):
            bundle.run({"input_ids": IDS})


def test_adapter_of_another_bundle_is_refused(copied: Path):
    from coda_targets import task_adapters

    (copied / "adapters").mkdir()
    task_adapters.write(copied / "adapters" / "a.onnx_adapter", {"x": np.ones(3, np.float32)})
    accept(copied)
    logits = {"activation": "sigmoid", "problem_type": "single_label_classification"}
    task = {"name": "a", "adapter": "adapters/a.onnx_adapter", "labels": ["l"], "logits": logits, "ood": None}
    edit(copied, tasks=[task])
    bundle, kept = Bundle(copied), Bundle(copied)
    assert kept.adapter("a") is kept.adapter("a")
    replace(copied)
    assert kept.adapter("a") is not None
    with pytest.raises(BundleError, match=REPLACED):
        bundle.adapter("a")


def test_time_of_writing_alone_proves_nothing(copied: Path):
    """Images of containers and reproducible builds give all files one time."""
    os.utime(copied / "coda.json", (0, 0))
    bundle = Bundle(copied)
    replace(copied)
    os.utime(copied / "coda.json", (0, 0))
    with pytest.raises(BundleError, match=REPLACED):
        bundle.run({"input_ids": IDS})


def test_bundle_that_is_gone(copied: Path):
    bundle = Bundle(copied)
    copied.rename(copied.with_name("elsewhere"))
    with pytest.raises(BundleError, match=REPLACED):
        bundle.run({"input_ids": IDS})
