"""The lines of docs/opens-in.md, run as they stand there."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_models import CodaConfig
from coda_targets import Bundle
from coda_targets.manifest import release

PAGE = Path(__file__).parents[2] / "docs" / "opens-in.md"
PACKAGES = "ModelPackageContext"

pytestmark = pytest.mark.usefixtures("portable")


def blocks() -> list[str]:
    """Python of the page that is run, in order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def made(
    compiled: Bundle, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the lines have made when all have run."""
    folder = tmp_path_factory.mktemp("opens-in")
    shutil.copytree(compiled.folder, folder / "model")
    embedder = tiny_coda("mpnet", CodaConfig(reduction=2, task="feature-extraction", pooling="mean"))
    compile(embedder, CompileOptions(tokenizer=tokenizer), output=folder / "embedder")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks():
            if PACKAGES not in block or release(ort.__version__) >= (1, 29):
                exec(block, names)
        names["embedded"] = Bundle("embedder").predict(names["texts"])
    return names


def test_records_are_those_of_a_pipeline(made: dict[str, Any]):
    for record, other in zip(made["records"], made["classified"], strict=True):
        assert record["label"] == other["label"]
        assert record["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_session_and_a_package_give_what_a_bundle_gives(made: dict[str, Any], compiled: Bundle):
    own = compiled.run(made["feed"])["logits"]
    np.testing.assert_allclose(made["logits"], own, atol=1e-5)
    if "packaged" in made:
        np.testing.assert_allclose(made["packaged"], own, atol=1e-5)


def test_embeddings_and_pairs(made: dict[str, Any], compiled: Bundle):
    own = np.array([record["embedding"] for record in made["embedded"]])
    np.testing.assert_allclose(made["embeddings"], own, atol=1e-4)
    (pair,) = compiled.predict([("good film", "bad plot")])
    assert compiled.manifest.labels[int(np.argmax(made["compared"][0]))] == pair["label"]


@pytest.mark.parametrize(("name", "tolerance"), [("inlined", 1e-6), ("converted", 1e-6), ("half", 0.05)])
def test_changed_files_compute_the_same(made: dict[str, Any], name: str, tolerance: float):
    session = ort.InferenceSession(made[name].SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], made["feed"])
    np.testing.assert_allclose(logits, made["logits"], atol=tolerance * (1 + np.abs(made["logits"]).max()))


def test_converted_models_are_of_the_version_asked_for(made: dict[str, Any]):
    assert {one.domain: one.version for one in made["converted"].opset_import}[""] == 21
