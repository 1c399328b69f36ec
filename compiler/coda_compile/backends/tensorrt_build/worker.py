"""Build an engine with TensorRT-RTX, in a process of its own: a builder that fails may end its process.

It runs as a script, reads a request from stdin and answers on stdout, both JSON; the engine itself is not kept.
"""

import json
import re
import sys
import time
from typing import Any

import tensorrt_rtx_bindings as trt

_LAYERS = "Layers:"
_KIND = re.compile(r"LayerType: (\w+)")


class _Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
    """Keeps what the builder says: errors, and the layers that it made."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.kinds: list[str] = []
        self._listing = False

    def log(self, severity: Any, message: str) -> None:
        """One message."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)
        self._listing = self._listing or _LAYERS in message
        if self._listing:
            self.kinds += _KIND.findall(message)


def main() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.read())
    log = _Log()
    began = time.perf_counter()
    engine = _build(request, log)
    kinds = sorted(set(log.kinds))
    answer = {
        "version": trt.__version__,
        "bytes": 0 if engine is None else engine.nbytes,
        "seconds": time.perf_counter() - began,
        "kernels": {kind: log.kinds.count(kind) for kind in kinds},
        "errors": log.errors,
    }
    sys.stdout.write(json.dumps(answer))


def _build(request: dict[str, Any], log: _Log) -> Any:
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["path"]):
        log.errors = [parser.get_error(i).desc() for i in range(parser.num_errors)] or log.errors
        return None
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(request["architectures"])
    for i, name in enumerate(request["architectures"]):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    profile = builder.create_optimization_profile()
    for name, shapes in request["shapes"].items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


if __name__ == "__main__":
    main()
