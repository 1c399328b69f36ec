"""Engines that are kept: under everything that they depend on, never in a bundle, and not used twice when damaged."""

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from coda_targets import BundleError, get_runtime
from coda_targets.profile import Profile
from coda_targets.runtimes import Runtime, engine_cache, nvidia, session

CARD = "NVIDIA RTX / 4060"
PROFILE = Profile((1, 1), (2, 2), (4, 4))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvidia, "device_name", lambda index: f"{CARD} {index}")
    return tmp_path / "cache"


def keeping(target: str = "tensorrt") -> Runtime:
    return replace(get_runtime(target), built_of="ab" * 32, profile=PROFILE)


def test_everything_that_an_engine_depends_on_names_its_folder(cache: Path, monkeypatch: pytest.MonkeyPatch):
    runtime = keeping()
    folders = {
        engine_cache.engine_folder(one)
        for one in (
            runtime,
            keeping("tensorrt-rtx"),
            replace(runtime, built_of="cd" * 32),
            replace(runtime, index=1),
            replace(runtime, profile=Profile((1, 1), (2, 2), (8, 8))),
        )
    }
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    folders.add(engine_cache.engine_folder(runtime))
    assert len(folders) == 6
    assert all(folder.is_relative_to(cache) for folder in folders)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_options_name_the_folder(target: str, cache: Path):
    opened = engine_cache.with_cache(keeping(target))
    paths = [value for name, value in opened.options.items() if name.endswith("_path")]
    assert paths
    assert set(paths) == {str(engine_cache.engine_folder(keeping(target)))}
    assert Path(paths[0]).is_dir()


def test_nothing_is_kept_without_a_key_or_by_others(cache: Path):
    for runtime in (replace(keeping(), built_of=""), replace(get_runtime("cuda"), built_of="ab")):
        assert engine_cache.with_cache(runtime) == runtime
        assert not engine_cache.kept(runtime)
    assert not cache.exists()


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODA_CACHE", str(tmp_path / "file"))
    assert engine_cache.with_cache(keeping()) == keeping()


def test_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("CODA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_cache.cache_root() == tmp_path / "coda-compile"


def test_what_is_damaged_is_forgotten_and_the_model_opened_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A provider that cannot read its engine fails as a whole; the second attempt has nothing to read."""
    opened = []

    def make(model: str, options: object, providers: list[tuple[str, dict[str, str]]], **_: object) -> object:
        opened.append(dict(providers[0][1]))
        raise RuntimeError("cannot deserialize the engine")

    monkeypatch.setattr(session, "require_runtime", lambda runtime: None)
    monkeypatch.setattr(ort, "InferenceSession", make)
    folder = engine_cache.engine_folder(keeping())
    folder.mkdir(parents=True)
    other = folder.parent / "another"
    other.mkdir()
    (folder / "graph.engine").write_bytes(b"cut o")
    with pytest.raises(BundleError, match="cannot deserialize the engine"):
        session.open_session(tmp_path / "model.onnx", keeping())
    assert [("trt_engine_cache_path" in options) for options in opened] == [True, False]
    assert not folder.exists()
    assert other.is_dir()
