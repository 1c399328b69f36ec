"""A model of floats, [batch, frames, bins]: compiled, verified, run, inspected, measured and held by the regression check
by code that knows nothing of it but its signature."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.frames import FRAMES, tiny_frames

from coda_compile import CompileOptions, compile
from coda_compile.bench.plan import Plan
from coda_compile.bench.run import bench
from coda_compile.cli import summaries
from coda_compile.errors import CodaError
from coda_compile.inspect.predict import predict
from coda_compile.inspect.profile import profile_bundle
from coda_compile.regression.check import check
from coda_compile.regression.verdict import Verdict
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig, load, save
from coda_targets import Bundle, modalities
from coda_targets.errors import InputError
from coda_targets.modalities.text import TextCodec

ROOT = Path(__file__).parents[2]
INSTALLED = ("torch eager", "onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Compiled at r = 2."""
    return compile(tiny_frames(), output=tmp_path_factory.mktemp(FRAMES) / "bundle")


def test_it_is_compiled_and_verified(bundle: Bundle):
    signature = bundle.manifest.signature
    assert (signature.modality, signature.unit, signature.max_length) == (FRAMES, "frames", 40)
    assert [layer.slots for layer in bundle.manifest.layers] == [20, 20]
    verify_bundle(bundle)


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"pack": True}], ids=str)
def test_in_other_forms(options: dict, tmp_path: Path):
    verify_bundle(compile(tiny_frames(), CompileOptions(**options), output=tmp_path / "bundle"))


def test_it_runs_as_torch_does(bundle: Bundle):
    model = tiny_frames()
    for length in (1, 7, 40):
        arrays = model.signature.random(3, length, ragged=True, seed=length)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(array) for name, array in arrays.items()}).logits.numpy()
        np.testing.assert_allclose(bundle.run(arrays)["logits"], expected, atol=1e-5)


def test_without_a_mask_all_frames_are_valid(bundle: Bundle, tmp_path: Path):
    whole = compile(tiny_frames(masked=False), output=tmp_path / "bundle")
    assert whole.manifest.signature.names == ("features",)
    features = {"features": np.random.default_rng(0).standard_normal((2, 9, 8))}
    np.testing.assert_allclose(whole.run(features)["logits"], bundle.run(features)["logits"], atol=1e-6)
    verify_bundle(whole)


def test_what_does_not_fit_is_refused(bundle: Bundle):
    with pytest.raises(InputError, match=r"features must be floating-point numbers of shape \[batch, frames, 8\]"):
        bundle.run({"features": np.zeros((1, 3, 9))})
    with pytest.raises(InputError, match="has 41 frames but this model takes at most 40"):
        bundle.run({"features": np.zeros((1, 41, 8))})


def test_it_is_inspected(bundle: Bundle, capfd: pytest.CaptureFixture[str]):
    summaries.inspected(bundle)
    said = capfd.readouterr().out
    assert "features float32[batch, frames, 8], frames_mask int64[batch, frames]" in said
    assert "up to 40 frames" in said
    assert "frames routed" in said


def test_it_is_profiled_by_layer(bundle: Bundle):
    profile = profile_bundle(bundle, runs=2, threads=1)
    assert profile.tokens == 40
    assert {kernel.place.layer for kernel in profile.kernels if kernel.place is not None} >= {0, 1}
    with pytest.raises(CodaError, match="41 frames are more than this model takes: give at most 40"):
        profile_bundle(bundle, tokens=41)


def test_it_is_measured_beside_its_dense_rivals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")  # of the processes that are measured
    plan = Plan(tokens=(8, 40), precisions=("fp32",), rounds=4, threads=1, skip=("torch.compile",))
    result = bench(tiny_frames(), plan=plan)
    measured = {one.contender for one in result.measurements}
    assert measured >= {"coda-compile r=2", *INSTALLED}
    assert {(one.batch, one.tokens) for one in result.measurements} == {(1, 8), (1, 40)}
    assert all(one.reason for one in result.skipped)
    assert not measured & {one.contender for one in result.skipped}
    assert "optimum O3" in {one.contender for one in result.skipped}


def test_the_regression_check_holds_it(bundle: Bundle, tmp_path: Path):
    result = check(bundle, bundle, threads=1, launches=4, by=0.9)
    assert result.verdict in (Verdict.NO_REGRESSION, Verdict.CANNOT_TELL)
    assert result.timing is None or (result.timing.batch, result.timing.tokens) == (1, 40)
    dense = compile(tiny_frames(CodaConfig(reduction=1)), output=tmp_path / "dense")
    assert check(dense, bundle).verdict is Verdict.REGRESSION


def test_a_checkpoint_brings_it_back(tmp_path: Path):
    model = tiny_frames()
    save(model, tmp_path / "model.pt")
    assert load(tmp_path / "model.pt").model.signature == model.signature


def test_text_is_refused_in_one_sentence(bundle: Bundle):
    sentence = rf"^{bundle.folder} takes frames, not text: feed arrays through Bundle\.run$"
    with pytest.raises(InputError, match=sentence):
        next(predict(bundle, ["a text"]))
    with pytest.raises(InputError, match=sentence):
        TextCodec(bundle)


def test_a_codec_of_its_own_is_found_by_its_modality(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modalities, "_CODECS", dict(modalities._CODECS))
    modalities.register(FRAMES, "tests.frames:FramesCodec")
    recordings = [np.random.default_rng(i).standard_normal((5 + i, 8)) for i in range(3)]
    records = [record for _, record, _ in predict(bundle, recordings, batch=2)]
    assert [set(record) for record in records] == [{"label"}] * 3
    with pytest.raises(InputError, match="routing is shown in words of text"):
        next(predict(bundle, recordings, routing=True))
