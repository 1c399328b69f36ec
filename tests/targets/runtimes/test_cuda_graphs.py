"""CUDA graphs: one a shape, bounded, one run at a time in one thread, whatever threads ask."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coda_targets.runtimes.cuda_graphs import MOST_GRAPHS, CudaGraphs

Shape = tuple[int, int]


class Value:
    """An OrtValue, whose memory keeps its place."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.memory = array

    @classmethod
    def ortvalue_from_numpy(cls, array: NDArray[Any], device: str, index: int) -> "Value":
        assert (device, index) == ("cuda", 1)
        return cls(array.copy())

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape: Shape, dtype: Any, device: str, index: int) -> "Value":
        assert (device, index) == ("cuda", 1)
        return cls(np.zeros(shape, dtype))

    def update_inplace(self, array: NDArray[Any]) -> None:
        assert array.shape == self.memory.shape
        self.memory[...] = array

    def numpy(self) -> NDArray[Any]:
        return self.memory.copy()


class Options:
    """RunOptions."""

    def __init__(self) -> None:
        self.log_severity_level, self.entries = 2, dict[str, str]()

    def add_run_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class Binding:
    """IOBinding."""

    def __init__(self) -> None:
        self.inputs, self.outputs = dict[str, Value](), dict[str, Value]()

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value


class Session:
    """Doubles ``x``. As onnxruntime does it replays what it captured, by thread and by the graph's name, in the memory
    that was bound then."""

    def __init__(self) -> None:
        self.captured: dict[tuple[int, str], tuple[Value, Value]] = {}
        self.plain = self.replayed = 0
        self.failing = False
        self._busy = threading.Lock()

    def io_binding(self) -> Binding:
        return Binding()

    def run(self, names: list[str], feed: dict[str, NDArray[Any]], options: Options) -> list[NDArray[Any]]:
        assert options.entries == {"gpu_graph_id": "-1"}
        assert names == ["y"]
        self.plain += 1
        return [feed["x"] * 2]

    def run_with_iobinding(self, binding: Binding, options: Options) -> None:
        assert self._busy.acquire(blocking=False), "two runs at once share memory"
        if self.failing:
            self._busy.release()
            raise RuntimeError("CUDA failure 2: out of memory")
        key = threading.get_ident(), options.entries["gpu_graph_id"]
        assert key[1] != "-1"
        self.replayed += key in self.captured
        x, y = self.captured.setdefault(key, (binding.inputs["x"], binding.outputs["y"]))
        y.memory[...] = x.memory * 2
        self._busy.release()


@pytest.fixture(scope="module", autouse=True)
def _faked() -> Iterator[None]:
    fake = type("ort", (), {"OrtValue": Value, "RunOptions": Options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coda_targets.runtimes.cuda_graphs.ort", fake)
        yield


def feed(shape: Shape, seed: int = 0) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).standard_normal(shape)}


def made(session: Session) -> CudaGraphs:
    return CudaGraphs(session, ["y"], 1)  # type: ignore[arg-type]


def test_the_second_run_of_a_shape_launches_what_the_first_captured():
    session = Session()
    graphs = made(session)
    for seed in range(3):
        given_ = feed((2, 5), seed)
        np.testing.assert_array_equal(graphs.run(given_)[0], given_["x"] * 2)
    assert (session.plain, session.replayed, len(session.captured)) == (1, 2, 1)
    assert graphs.shapes == (((2, 5),),)


def test_results_stay_as_they_are_when_the_graph_runs_again():
    graphs = made(Session())
    first = graphs.run(feed((1, 2), 0))[0]
    kept = first.copy()
    graphs.run(feed((1, 2), 1))
    np.testing.assert_array_equal(first, kept)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12)), max_size=60))
def test_any_order_of_shapes_from_any_threads_gives_each_its_own_result(shapes: list[Shape]):
    session = Session()
    graphs = made(session)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda one: graphs.run(feed(one[1], one[0]))[0], enumerate(shapes)))
    for i, (shape, result) in enumerate(zip(shapes, results, strict=True)):
        np.testing.assert_array_equal(result, feed(shape, i)["x"] * 2)
    assert len(graphs.shapes) == len(session.captured) == min(len(set(shapes)), MOST_GRAPHS)
    assert len({thread for thread, _ in session.captured}) <= 1


def test_a_capture_that_fails_leaves_nothing_and_is_tried_again():
    session = Session()
    graphs = made(session)
    session.failing = True
    with pytest.raises(RuntimeError, match="out of memory"):
        graphs.run(feed((1, 3)))
    assert graphs.shapes == ()
    session.failing = False
    np.testing.assert_array_equal(graphs.run(feed((1, 3)))[0], feed((1, 3))["x"] * 2)
