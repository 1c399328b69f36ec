"""What decides latency and needs no clock: operators after the runtime's fusions, placement, multiply-adds, bytes.

A difference is a regression by itself where it cannot make a model faster:

- multiply-adds, or bytes of the model's files, that grew by more than the threshold;
- a fused operator that stands in the graph less often, while the graph as a whole has more nodes. A lost fusion puts
  several nodes where one was; a graph that shrinks was fused better, or simply has less to do;
- more nodes away from the target's preferred execution provider.

Everything else that differs is a note: its cost is for the clock to find.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from coda_compile.errors import CodaError
from coda_compile.inspect.cost import multiply_adds
from coda_ops.files import private_folder
from coda_targets import Bundle
from coda_targets.bundle import MODEL
from coda_targets.runtimes.session import open_session

# Operators of the default domain that onnxruntime puts in the place of several; its other fusions have its own domains.
_FUSED_IN_DEFAULT_DOMAIN = frozenset(
    ("Attention", "Gelu", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
)
_OUR_DOMAIN = "ai.coda::"
_NO_COPY_OF_WEIGHTS = {  # the optimised graph is only counted, and one file could not hold over 2 GiB
    "session.optimized_model_external_initializers_file_name": "weights",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
_PROFILED_LENGTH = 8  # placement does not depend on how many
_MOST_NAMED = 6


class IncomparableError(CodaError):
    """Bundles whose latencies have nothing to do with each other."""


@dataclass(frozen=True)
class Facts:
    """What is known of a bundle on this machine's runtime without timing it.

    Attributes:
        multiply_adds: of the layers, for one input of the longest length.
        bytes: of the variant's model.
        operators: how often each stands in the graph after the runtime's own fusions, ``domain::name`` outside the
            default domain.
        placement: nodes by execution provider.
        preferred: the execution provider that the target wants.
    """

    multiply_adds: int
    bytes: int
    operators: dict[str, int]
    placement: dict[str, int]
    preferred: str

    @property
    def nodes(self) -> int:
        """In the graph after fusions."""
        return sum(self.operators.values())


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was; ``regression`` where that is enough to decide."""

    what: str
    before: str
    after: str
    regression: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.before} before, now {self.after}"


def require_comparable(baseline: Bundle, candidate: Bundle) -> None:
    """Check that both bundles do the same job.

    Raises:
        IncomparableError: of another task, target, or shape of inputs or outputs.
    """
    a, b = baseline.manifest, candidate.manifest
    sides = {
        "tasks": (a.task, b.task),
        "targets": (baseline.variant.target, candidate.variant.target),
        "inputs": tuple(_listed((t.name, t.dtype, t.axes) for t in m.signature.inputs) for m in (a, b)),
        "outputs": tuple(_listed((t.name, t.dtype, t.shape) for t in m.outputs) for m in (a, b)),
        "longest inputs": tuple(f"{m.signature.max_length} {m.signature.unit}" for m in (a, b)),
    }
    for what, (before, after) in sides.items():
        if before != after:
            raise IncomparableError(
                f"{candidate.folder} and {baseline.folder} have different {what}, {after} and {before}: "
                "compare bundles that do the same job"
            )


def _listed(tensors: Iterator[tuple[str, str, tuple[int | str, ...]]]) -> str:
    return ", ".join(f"{name} {dtype}[{', '.join(map(str, shape))}]" for name, dtype, shape in sorted(tensors))


def read_facts(bundle: Bundle) -> Facts:
    """Open a bundle once, run one short input under onnxruntime's profiler, and count.

    On function bodies, whatever kernels are installed here: facts are the bundle's own.

    Raises:
        BundleError: onnxruntime cannot load the model.
        TargetError: the runtime for the bundle's target is not installed.
    """
    runtime = bundle.runtime
    with private_folder() as folder, bundle.reading(*bundle.model_files):
        optimised = folder / MODEL
        options: dict[str, Any] = {"enable_profiling": True}
        if runtime.profiled_by_onnxruntime:
            options["optimized_model_filepath"] = str(optimised)
        watched = replace(
            runtime,
            kernels="",
            session_options={**runtime.session_options, **options, "profile_file_prefix": str(folder / "run")},
            session_config={**runtime.session_config, **_NO_COPY_OF_WEIGHTS},
        )
        session = open_session(bundle.model_path, watched, threads=1)
        signature = bundle.manifest.signature
        session.run(None, bundle.prepare(signature.random(1, min(_PROFILED_LENGTH, signature.max_length))))
        profile = Path(session.end_profiling())
        del session  # some systems cannot remove files of an open one
        # What others make of a model they keep to themselves; the file's own operators are left to compare.
        compared = optimised if runtime.profiled_by_onnxruntime else bundle.model_path
        graph = onnx.load(compared, load_external_data=False).graph
        placement = _placement(profile)
    return Facts(
        multiply_adds=multiply_adds(bundle.manifest, signature.max_length),
        bytes=bundle.model_bytes,
        operators=dict(Counter(sorted(_operators(graph)))),
        placement=placement,
        preferred=runtime.preferred,
    )


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of all nodes' operators, those of branches and loop bodies included."""
    for node in graph.node:
        yield f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _operators(inner)


def _placement(profile: Path) -> dict[str, int]:
    """Nodes by provider, each counted once, however often a loop ran it."""
    events = json.loads(profile.read_text("utf-8"))
    placed = {
        (event["name"], event["args"].get("node_index"), event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    }
    return dict(Counter(sorted(provider for _, _, provider in placed)))


def compare(before: Facts, after: Facts, *, by: float) -> tuple[Difference, ...]:
    """What differs, regressions first.

    Args:
        by: how much more work and bytes are accepted, as a fraction.
    """
    found = [
        *_grown("multiply-adds", before.multiply_adds, after.multiply_adds, by),
        *_grown("bytes of the model", before.bytes, after.bytes, by),
        *_fewer_fusions(before, after),
        *_moved(before, after),
        *_other_operators(before, after),
    ]
    return tuple(sorted(found, key=lambda difference: not difference.regression))


def _grown(what: str, before: int, after: int, by: float) -> Iterator[Difference]:
    if before and before != after:
        change = f"{after:,} ({after / before - 1:+.1%})".replace("%", " %")
        yield Difference(what, f"{before:,}", change, regression=after > before * (1 + by))


def _fewer_fusions(before: Facts, after: Facts) -> Iterator[Difference]:
    for name, count in before.operators.items():
        left = after.operators.get(name, 0)
        if is_fused(name) and left < count:
            yield Difference(f"fused {name}", str(count), str(left), regression=after.nodes > before.nodes)


def is_fused(name: str) -> bool:
    """Whether an operator is one that the runtime puts in the place of several."""
    return name in _FUSED_IN_DEFAULT_DOMAIN or ("::" in name and not name.startswith(_OUR_DOMAIN))


def _moved(before: Facts, after: Facts) -> Iterator[Difference]:
    for name in sorted({*before.placement, *after.placement} - {before.preferred}):
        a, b = before.placement.get(name, 0), after.placement.get(name, 0)
        if a != b:
            what = f"nodes on {name} instead of {before.preferred}"
            yield Difference(what, str(a), str(b), regression=b > a)


def _other_operators(before: Facts, after: Facts) -> Iterator[Difference]:
    names = sorted({*before.operators, *after.operators})
    lost = {n for n in names if is_fused(n) and after.operators.get(n, 0) < before.operators.get(n, 0)}
    changed = [n for n in names if n not in lost and before.operators.get(n) != after.operators.get(n)]
    if changed:
        shown, more = changed[:_MOST_NAMED], ", …" if len(changed) > _MOST_NAMED else ""
        a, b = (
            ", ".join(f"{n} {facts.operators.get(n, 0)}" for n in shown) + f"{more} ({facts.nodes} nodes)"
            for facts in (before, after)
        )
        yield Difference("operators", a, b, regression=False)
