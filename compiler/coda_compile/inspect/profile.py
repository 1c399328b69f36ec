"""Where the time of a compiled model goes: onnxruntime's own profile, every kernel traced back to its layer.

onnxruntime inlines the ``ai.coda`` functions, fuses nodes and names what it makes as it likes. So what runs here is a
copy in memory whose function bodies have names too; what onnxruntime made of it is written out beside the profile, and
every node of that graph is traced by its own name, by the function call that it was inlined from, or by the tensor that
it computes. Names change no optimisation: the graph is the one that an app gets. Work that onnxruntime shares between
layers counts for the layer whose copy it kept.
"""

import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from coda_compile.errors import CodaError
from coda_ops.errors import first_line
from coda_ops.files import private_folder
from coda_targets import Bundle, BundleError
from coda_targets.routing import LAYER_TAG, ROLE_TAG
from coda_targets.runtimes import DEFAULT_TARGET
from coda_targets.runtimes.session import open_session, run_session
from coda_targets.weights import find_weights

_BODY = re.compile(r"^(?P<prefix>.*?)coda-body\.(?P<operator>\w+)\.\d+\.")
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Place:
    """Where in the model a node belongs.

    Attributes:
        layer: index, bottom first; ``None`` before and after the layers.
        role: ``attention``, ``feed_forward``, ``routing``, …; see ``coda_compile.export``.
        function: the ``ai.coda`` operator from whose body the node was inlined.
    """

    layer: int | None
    role: str
    function: str | None = None


@dataclass(frozen=True)
class Kernel:
    """One node as it ran.

    Attributes:
        place: ``None`` where it could not be traced back.
        seconds: median over the runs.
    """

    name: str
    operator: str
    provider: str
    place: Place | None
    seconds: float


@dataclass(frozen=True)
class Profile:
    """What onnxruntime's profiler saw of a bundle.

    Attributes:
        batch, tokens: shape of the input, all tokens valid.
        runs: counted, after one to warm up.
        threads: 0 for onnxruntime's own choice.
        run_seconds: median of whole runs; the profiler itself costs some of it.
        graph: what onnxruntime made of the model, without large weights.
        places: of the graph's nodes, by name.
    """

    batch: int
    tokens: int
    runs: int
    threads: int
    run_seconds: float
    kernels: tuple[Kernel, ...]
    graph: onnx.GraphProto
    places: dict[str, Place]

    @property
    def kernel_seconds(self) -> float:
        """Of all kernels together."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def unattributed(self) -> float:
        """Share of the kernels' time that could not be traced back to the model."""
        lost = sum(kernel.seconds for kernel in self.kernels if kernel.place is None)
        return lost / self.kernel_seconds if self.kernel_seconds else 0.0


def profile_bundle(
    bundle: Bundle, *, batch: int = 1, tokens: int | None = None, runs: int = 10, threads: int = 0
) -> Profile:
    """Run a bundle under onnxruntime's profiler.

    Args:
        tokens: by default as many as the model takes.
        runs: counted ones.
        threads: 0 for onnxruntime's own choice.

    Raises:
        CodaError: more tokens than the model takes, or a runtime that tells nothing of what it does inside.
        BundleError: a model that is missing or damaged.
        TargetError: the runtime of its target is not installed.
    """
    signature = bundle.manifest.signature
    longest = signature.max_length
    tokens = tokens or longest
    if tokens > longest:
        raise CodaError(f"{tokens} {signature.unit} are more than this model takes: give at most {longest}")
    runtime = bundle.runtime
    if not runtime.profiled_by_onnxruntime:
        raise CodaError(
            f"{runtime.preferred} runs a model as one piece and shows no layers: "
            f"compile for {DEFAULT_TARGET} and look there"
        )
    with private_folder() as temporary, bundle.reading(*bundle.model_files):
        model = _named(bundle.model_path)
        weights = find_weights(model, bundle.folder)
        optimised = temporary / "optimised.onnx"
        options = {
            "enable_profiling": True,
            "profile_file_prefix": str(temporary / "profile"),
            "optimized_model_filepath": str(optimised),
        }
        weights_apart = {
            "session.optimized_model_external_initializers_file_name": "weights",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        watched = replace(
            runtime,
            session_options={**runtime.session_options, **options},
            session_config={**runtime.session_config, **weights_apart},
        )
        session = open_session(model.SerializeToString(), watched, threads=threads, weights=weights)
        names = [output.name for output in session.get_outputs()]
        feed = bundle.prepare(signature.random(batch, tokens))
        for _ in range(runs + 1):
            run_session(session, names, feed)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        graph = onnx.load(str(optimised), load_external_data=False).graph
    places = trace(model, graph)
    run_seconds, kernels = _kernels(events, places)
    return Profile(batch, tokens, runs, threads, run_seconds, tuple(kernels), graph, places)


def _named(path: Path) -> onnx.ModelProto:
    """A model whose nodes all have names, those of function bodies included."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError shares no public base class across its versions
        raise BundleError(f"{path} is missing or damaged: {first_line(error)}; compile it again") from None
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"node.{i}."
    for function in model.functions:
        for i, node in enumerate(function.node):
            node.name = f"coda-body.{function.name}.{i}."
    return model


def trace(model: onnx.ModelProto, graph: onnx.GraphProto) -> dict[str, Place]:
    """Where each node of an optimised graph comes from, by its name; nodes of unknown origin are left out.

    Args:
        model: as ``_named`` gives it.
        graph: what onnxruntime made of it.
    """
    by_name = {node.name: _place(node) for node in model.graph.node}
    by_tensor = {name: _place(node) for node in model.graph.node for name in node.output}
    calls = _calls(model, graph)
    bodies = {function.name: function for function in model.functions}
    for (prefix, operator), call in calls.items():
        values = (name for node in bodies[operator].node for name in node.output)
        by_tensor.update({prefix + value: call for value in values})
    found = {}
    for node in graph.node:
        body = _BODY.match(node.name)
        named = calls.get((body["prefix"], body["operator"])) if body else by_name.get(node.name)
        place = named or next((by_tensor[name] for name in node.output if name in by_tensor), None)
        if place is not None:
            found[node.name] = place
    return found


def _calls(model: onnx.ModelProto, graph: onnx.GraphProto) -> dict[tuple[str, str], Place]:
    """The function call behind every prefix of inlined names: known by the tensors that both write, or both read."""
    written: dict[tuple[str, str], Place] = {}
    read: dict[tuple[str, str], list[Place]] = defaultdict(list)
    inlined = {function.name for function in model.functions}
    for node in model.graph.node:
        if node.op_type in inlined:
            place = replace(_place(node), function=node.op_type)
            written.update({(node.op_type, name): place for name in node.output})
            for name in set(node.input):
                read[node.op_type, name].append(place)
    only_one = {key: places[0] for key, places in read.items() if len(places) == 1}
    calls: dict[tuple[str, str], Place] = {}
    for known, side in ((written, "output"), (only_one, "input")):  # sharing may swap what a body reads, never writes
        for node in graph.node:
            body = _BODY.match(node.name)
            if body is not None and (body["prefix"], body["operator"]) not in calls:
                hits = [known.get((body["operator"], name)) for name in getattr(node, side)]
                hit = next((hit for hit in hits if hit is not None), None)
                if hit is not None:
                    calls[body["prefix"], body["operator"]] = hit
    return calls


def _place(node: onnx.NodeProto) -> Place:
    tags = {entry.key: entry.value for entry in node.metadata_props}
    layer = tags.get(LAYER_TAG, "")
    return Place(int(layer) if layer.isdecimal() else None, tags.get(ROLE_TAG, "model"))


def _kernels(events: list[dict[str, Any]], places: dict[str, Place]) -> tuple[float, Iterator[Kernel]]:
    """Median seconds of a run, and every kernel; the first run warms up and does not count."""
    runs = sorted((e["ts"], e["dur"]) for e in events if e["cat"] == "Session" and e["name"] == "model_run")
    starts = [start for start, _ in runs]
    spent: dict[tuple[str, str, str], Counter[int]] = defaultdict(Counter)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
            run = bisect_right(starts, event["ts"]) - 1
            name, args = event["name"].removesuffix(_KERNEL), event["args"]
            spent[name, args["op_name"], args["provider"]][run] += event["dur"]  # microseconds
    counted = range(1, len(runs))
    kernels = (
        Kernel(name, operator, provider, places.get(name), median(micros[run] for run in counted) / 1e6)
        for (name, operator, provider), micros in spent.items()
    )
    return median(duration for _, duration in runs[1:]) / 1e6, kernels
