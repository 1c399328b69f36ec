"""Sessions as a runtime asks for them, and what is said where one cannot be made."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import onnxruntime as ort
import pytest

from coda_ops import distributions
from coda_targets import Bundle, TargetError, get_runtime
from coda_targets.runtimes.session import open_session


def test_the_null_runtime_runs_nothing(compiled: Bundle):
    with pytest.raises(TargetError, match=r"^target 'null' cannot run here: nothing runs a bundle of the null target"):
        open_session(compiled.model_path, get_runtime("null"))


def _none_installed(name: str) -> str:
    raise PackageNotFoundError(name)


def test_absent_provider_says_what_to_install(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(distributions, "version", _none_installed)
    with pytest.raises(
        TargetError, match=r'CUDAExecutionProvider is not installed: pip install "onnxruntime-gpu\[cuda,cu'
    ):
        open_session(compiled.model_path, get_runtime("cuda"))


def test_session_options_of_a_runtime_are_applied(compiled: Bundle):
    runtime = replace(
        get_runtime("cpu"),
        session_options={"enable_mem_pattern": False},
        session_config={"session.intra_op.allow_spinning": "0"},
    )
    options = open_session(compiled.model_path, runtime, threads=2).get_session_options()
    assert options.enable_mem_pattern is False
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
