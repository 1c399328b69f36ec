"""One folder that onnxruntime opens as a model package, and the libraries people have open as a model."""

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from optimum.onnxruntime import ORTModelForSequenceClassification
from sentence_transformers import SentenceTransformer
from tests.conftest import tiny_coda
from tests.targets.test_links import hub_cache
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

from coda_compile import CompileOptions, compile
from coda_models import CodaConfig
from coda_ops.errors import CodaError
from coda_targets import Bundle, get_runtime
from coda_targets.bundle import Arrays
from coda_targets.manifest import VariantInfo, release
from coda_targets.modalities.text import TextCodec
from coda_targets.runtimes.session import require_runtime

OPENVINO = "OpenVINOExecutionProvider"
TEXTS = ["good film", "bad plot w1 w2 w3 w4 w5", "w9 " * 200]

opens_packages = pytest.mark.skipif(
    release(ort.__version__) < (1, 29), reason="onnxruntime opens model packages from 1.29 on"
)


def _has_openvino() -> bool:
    try:
        require_runtime(get_runtime("openvino"))
    except CodaError:
        return False
    return True


OPTIONS = CompileOptions(target=("cpu", "openvino") if _has_openvino() else "cpu", precision=("fp32", "int8"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Bundle:
    model = tiny_coda("bert", CodaConfig(reduction=2))
    return compile(
        model, replace(OPTIONS, tokenizer=tokenizer), output=tmp_path_factory.mktemp("classifier") / "bundle"
    )


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Bundle:
    model = tiny_coda("mpnet", CodaConfig(reduction=2, task="feature-extraction", pooling="mean"))
    return compile(model, replace(OPTIONS, tokenizer=tokenizer), output=tmp_path_factory.mktemp("embedder") / "bundle")


def feed(bundle: Bundle) -> Arrays:
    return bundle.prepare(TextCodec(bundle).encode(TEXTS).inputs)


def expected(bundle: Bundle, variant: VariantInfo) -> np.ndarray:
    """What our own loader gives for the texts; on function bodies, as others run them."""
    opened = Bundle(bundle.folder, target=variant.target, precision=variant.precision, threads=1)
    return opened.run(feed(bundle))["logits"]


def options(provider: str) -> ort.SessionOptions:
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = 1
    if provider == OPENVINO:
        require_runtime(get_runtime("openvino"))  # registers it
        chosen.add_provider_for_devices(devices(), {})
    return chosen


def devices() -> list[Any]:
    found = [one for one in ort.get_ep_devices() if one.ep_name == OPENVINO]
    return [one for one in found if one.device.type == ort.OrtHardwareDeviceType.CPU]


def by_provider(folder: Path, provider: str) -> ort.InferenceSession:
    context = ort.ModelPackageContext(str(folder))
    return context.select_component("model", ort.ModelPackageOptions(options(provider))).create_session()


@opens_packages
def test_onnxruntime_selects_by_execution_provider(classifier: Bundle):
    variants = {one.session.providers[0]: one for one in reversed(classifier.manifest.variants)}
    for provider, variant in variants.items():
        session = by_provider(classifier.folder, provider)
        assert session.get_providers()[0] == provider
        np.testing.assert_allclose(
            session.run(["logits"], feed(classifier))[0], expected(classifier, variant), atol=1e-5
        )


@opens_packages
def test_onnxruntime_opens_each_variant_by_name(classifier: Bundle):
    with ort.ModelPackage.open(str(classifier.folder)) as opened:
        (component,) = opened.get_info()["components"]
        listed = {one["name"]: one for one in component["variants"]}
        assert list(listed) == [one.name for one in classifier.manifest.variants]
        for variant in classifier.manifest.variants:
            found = listed[variant.name]
            executor = json.loads(found["executor_info"]["ort"])
            path = opened.resolve_string_ref(executor["model_file"], found["variant_directory"], True)
            chosen = ort.SessionOptions()
            for name, value in executor.get("session_options", {}).items():
                chosen.add_session_config_entry(name, value)
            if found["ep"] == OPENVINO:
                require_runtime(get_runtime("openvino"))
                chosen.add_provider_for_devices(devices(), executor["provider_options"])
            session = ort.InferenceSession(path, chosen)
            np.testing.assert_allclose(
                session.run(["logits"], feed(classifier))[0], expected(classifier, variant), atol=1e-5
            )


@opens_packages
def test_onnxruntime_opens_a_bundle_of_one_variant_from_the_cache_of_a_hub(compiled: Bundle, tmp_path: Path):
    session = by_provider(hub_cache(compiled.folder, tmp_path), "CPUExecutionProvider")
    np.testing.assert_allclose(
        session.run(["logits"], feed(compiled))[0], compiled.run(feed(compiled))["logits"], atol=1e-5
    )


@opens_packages
def test_onnxruntime_opens_a_package_that_was_copied_from_the_cache_of_a_hub(classifier: Bundle, tmp_path: Path):
    """Shared weights behind links it refuses; ``snapshot_download(local_dir=...)`` makes files of them."""
    snapshot = hub_cache(classifier.folder, tmp_path / "hub")
    local = Path(shutil.copytree(snapshot, tmp_path / "local", symlinks=False))
    first = classifier.manifest.variants[0]
    session = by_provider(local, "CPUExecutionProvider")
    np.testing.assert_allclose(session.run(["logits"], feed(classifier))[0], expected(classifier, first), atol=1e-5)


@pytest.fixture(params=["as written", "hub"])
def place(request: pytest.FixtureRequest, classifier: Bundle, tmp_path: Path) -> Path:
    """The folder, and the same as links in the cache of a hub."""
    return classifier.folder if request.param == "as written" else hub_cache(classifier.folder, tmp_path)


def test_plain_sessions_open_every_file(classifier: Bundle, place: Path):
    for variant in classifier.manifest.variants[:2]:
        session = ort.InferenceSession(str(place / variant.models["model"]), options("CPUExecutionProvider"))
        np.testing.assert_allclose(
            session.run(["logits"], feed(classifier))[0], expected(classifier, variant), atol=1e-5
        )


@pytest.fixture
def silent() -> Iterator[None]:
    """No library warns of a second ONNX file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("silent")
def test_optimum_and_pipelines_take_the_default_variant(
    classifier: Bundle, place: Path, caplog: pytest.LogCaptureFixture
):
    model, tokenizer = ORTModelForSequenceClassification.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    logits = model(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="np")).logits
    first = classifier.manifest.variants[0]
    np.testing.assert_allclose(logits, expected(classifier, first), atol=1e-5)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    labels = [classifier.manifest.labels[int(row.argmax())] for row in logits]
    assert [one["label"] for one in classify(TEXTS, truncation=True)] == labels
    assert "Found multiple ONNX files" not in caplog.text


@pytest.mark.parametrize("where", ["as written", "hub"])
def test_sentence_transformers_take_the_default_variant(
    embedder: Bundle, where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    place = embedder.folder if where == "as written" else hub_cache(embedder.folder, tmp_path)
    codec = TextCodec(embedder)
    own = np.array(
        [codec.decode(embedder.run(e.inputs), e)[0]["embedding"] for e in (codec.encode([t]) for t in TEXTS)]
    )
    loaded = SentenceTransformer(str(place), backend="onnx", model_kwargs={"provider": "CPUExecutionProvider"})
    np.testing.assert_allclose(loaded.encode(TEXTS), own, atol=1e-4)
    assert "multiple ONNX files" not in caplog.text.lower()
