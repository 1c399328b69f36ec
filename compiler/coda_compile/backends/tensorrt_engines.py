"""Engines that TensorRT-RTX builds ahead of time, as proof that it takes a model."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from coda_compile.errors import CompileError, OptionError
from coda_targets.profile import Profile
from coda_targets.signature import Signature

_PACKAGE = "tensorrt_rtx_bindings"
_SCRIPT = Path(__file__).parent / "tensorrt_build" / "worker.py"
_MOST_SECONDS = 600


@dataclass(frozen=True)
class Engine:
    """What was built.

    Attributes:
        version: of TensorRT-RTX.
        bytes: of the engine, for all of its architectures.
        seconds: that building took.
        kernels: how many there are of each kind.
    """

    version: str
    bytes: int
    seconds: float
    kernels: Mapping[str, int]


def available() -> bool:
    """Whether TensorRT-RTX's builder is installed."""
    return find_spec(_PACKAGE) is not None


def build(path: Path, signature: Signature, profile: Profile, architectures: Sequence[str]) -> Engine:
    """Build an engine of an ONNX file.

    Args:
        signature: of the model.
        profile: the sizes of input that it has to run.
        architectures: names of TensorRT-RTX's ``ComputeCapability``, such as ``SM86``.

    Raises:
        CompileError: what the parser or the builder says.
        OptionError: it takes too long.
    """
    sizes = profile.least, profile.best, profile.most
    shapes = {one.name: [profile.shape(one, at) for at in sizes] for one in signature.inputs}
    request = {"path": str(path), "architectures": list(architectures), "shapes": shapes}
    try:
        done = subprocess.run(
            [sys.executable, str(_SCRIPT)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise OptionError(
            "TensorRT-RTX built no engine within {most} s: give a {profile} of smaller inputs, or another {precision}",
            most=_MOST_SECONDS,
        ) from None
    if done.returncode:
        raise CompileError(f"TensorRT-RTX cannot build an engine: {_end_of(done.returncode, done.stderr)}")
    answer = json.loads(done.stdout)
    if not answer["bytes"]:
        said = next(iter(answer["errors"]), "it gives no reason").splitlines()[0]
        raise CompileError(f"TensorRT-RTX {answer['version']} cannot build an engine: {said}: use another target")
    return Engine(answer["version"], answer["bytes"], answer["seconds"], answer["kernels"])


def _end_of(status: int, said: str) -> str:
    """How a process ended that gave no answer."""
    if status < 0:
        return f"its process ended by {signal.Signals(-status).name}"
    return (said.strip().splitlines() or ["it gives no reason"])[-1]
