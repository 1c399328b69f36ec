"""Runs that are captured as CUDA graphs: one launch where there were hundreds, for shapes that come again."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from coda_targets.signature import Arrays

MOST_GRAPHS = 16  # each keeps device memory for what lies between its inputs and outputs
# Operators, as a manifest counts them, whose outputs have as many rows as the values of their inputs say: a graph would
# compute with the rows of the run that it was captured in.
BY_VALUE = {"Compress", "NonMaxSuppression", "NonZero", "Unique", "ai.coda::PackTokens"}
_GRAPH = "gpu_graph_id"  # the entry of a run's configuration that names the graph
_NONE = "-1"
_DEVICE = "cuda"  # as onnxruntime calls memory of NVIDIA GPUs

_Shapes = tuple[tuple[int, ...], ...]


class CudaGraphs:
    """Runs a session by CUDA graphs, one a shape of its inputs.

    The first run of a shape captures it; later ones copy inputs in, launch the graph and copy outputs out. Shapes
    beyond ``MOST_GRAPHS`` run without. Runs wait for each other: all use the same memory, and onnxruntime keeps graphs
    by thread, so that one of its own does all of them.

    Args:
        session: made with CUDA graphs.
        outputs: names of what is returned.
        index: of the device.
    """

    def __init__(self, session: ort.InferenceSession, outputs: Sequence[str], index: int) -> None:
        self._session, self._outputs, self._index = session, list(outputs), index
        self._graphs: dict[_Shapes, CudaGraph] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="coda-cuda-graphs")

    @property
    def shapes(self) -> tuple[_Shapes, ...]:
        """Those that are captured, of each input in order."""
        return tuple(self._graphs)

    def run(self, feed: Arrays) -> list[NDArray[Any]]:
        """Outputs, in their order; whatever onnxruntime raises.

        Args:
            feed: every input by name, always in the same types.
        """
        return self._thread.submit(self._run, feed).result()

    def _run(self, feed: Arrays) -> list[NDArray[Any]]:
        shapes = tuple(array.shape for array in feed.values())
        graph = self._graphs.get(shapes)
        if graph is not None:
            return graph.run(self._session, feed)
        results = uncaptured(self._session, self._outputs, feed)
        if len(self._graphs) < MOST_GRAPHS:
            graph = CudaGraph.of(self._session, self._outputs, feed, results, len(self._graphs) + 1, self._index)
            results = graph.run(self._session, feed)
            self._graphs[shapes] = graph
        return results


def uncaptured(session: ort.InferenceSession, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
    """Outputs of a session that is made for CUDA graphs, from a run that is none."""
    results: list[NDArray[Any]] = session.run(outputs, feed, _options(_NONE))
    return results


@dataclass(frozen=True)
class CudaGraph:
    """Memory of the device that one graph reads and writes, however often it is launched.

    Attributes:
        inputs, outputs: on the device.
        options: that name it.
    """

    inputs: dict[str, ort.OrtValue]
    outputs: list[ort.OrtValue]
    binding: ort.IOBinding
    options: ort.RunOptions

    @classmethod
    def of(
        cls,
        session: ort.InferenceSession,
        names: Sequence[str],
        feed: Arrays,
        results: Sequence[NDArray[Any]],
        number: int,
        index: int = 0,
    ) -> "CudaGraph":
        """For inputs and outputs of the same shapes and types.

        Args:
            session: made with CUDA graphs.
            names: of the outputs.
            results: of a run, see ``uncaptured``.
            number: that tells it from others of the session; from 1.
            index: of the device.
        """
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(array, _DEVICE, index) for name, array in feed.items()}
        outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, _DEVICE, index) for array in results
        ]
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        return cls(inputs, outputs, binding, _options(str(number)))

    def run(self, session: ort.InferenceSession, feed: Arrays) -> list[NDArray[Any]]:
        """Copy inputs in, launch the graph, which the first run captures, and copy outputs out."""
        for name, value in self.inputs.items():
            value.update_inplace(feed[name])
        session.run_with_iobinding(self.binding, self.options)
        return [value.numpy() for value in self.outputs]


def _options(graph: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = 4  # errors come as exceptions, too
    options.add_run_config_entry(_GRAPH, graph)
    return options
