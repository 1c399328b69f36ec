"""Threads that share a bundle, or a plugin: what is made on first use is made once."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from coda_targets import Bundle, get_runtime
from coda_targets.runtimes import plugin
from coda_targets.runtimes.session import open_session

THREADS = 8


def at_once(call: Any) -> list[Any]:
    """What as many threads get that call it at one moment."""
    barrier = Barrier(THREADS)

    def wait_and_call(_: int) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(wait_and_call, range(THREADS)))


def test_one_session_serves_all(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    opened: list[Path] = []

    def slow(path: Path, runtime: Any, **given: Any) -> ort.InferenceSession:
        opened.append(path)
        time.sleep(0.05)
        return open_session(path, runtime, **given)

    monkeypatch.setattr("coda_targets.bundle.open_session", slow)
    bundle = Bundle(compiled.folder)
    sessions = at_once(lambda: bundle.session)
    assert opened == [bundle.model_path]
    assert all(one is sessions[0] for one in sessions)


def test_a_plugin_is_registered_once(monkeypatch: pytest.MonkeyPatch):
    runtime = get_runtime("openvino")
    found: list[Any] = []

    def register(name: str, path: str) -> None:
        assert not found, f"{name} is registered already"
        time.sleep(0.05)
        hardware = SimpleNamespace(type=ort.OrtHardwareDeviceType.CPU)
        found.append(SimpleNamespace(ep_name=name, device=hardware))

    fake = SimpleNamespace(
        __version__=ort.__version__,
        OrtHardwareDeviceType=ort.OrtHardwareDeviceType,
        get_ep_devices=lambda: list(found),
        register_execution_provider_library=register,
    )
    monkeypatch.setattr(plugin, "ort", fake)
    monkeypatch.setattr(plugin, "import_module", lambda name: SimpleNamespace(get_library_path=lambda: "library.so"))
    assert at_once(lambda: plugin.device(runtime)) == found * THREADS
