"""What a machine with a GPU is asked, in one command: first whether results are right, then launches, then times.

python benchmarks/gpu_check.py reviews-cuda --dense reviews-dense-cuda --output results

The second bundle is the same checkpoint compiled at ``--reduction 1``. It needs onnxruntime-gpu, onnx, numpy and
click; torch, where it sees the GPU, counts launches. ``--output`` gets gpu_check.json and gpu_check.md. Status 1: wrong
results.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort

from coda_compile.bench import openers
from coda_compile.inspect.cards import card_here
from coda_compile.precision import UNQUANTISED
from coda_compile.verify.cases import Case, cases
from coda_ops import native
from coda_ops.errors import CodaError, first_line
from coda_targets import Bundle, get_runtime
from coda_targets.bundle import Arrays
from coda_targets.routing import LAYER_TAG, Decision, RoutingProbe
from coda_targets.runtimes import DEFAULT_TARGET, GPU
from coda_targets.runtimes.session import open_session
from coda_targets.weights import find_weights

FORMS = ("kernels", "bodies")
LIMITS = {UNQUANTISED: 1e-4}  # of scores and outputs, times the largest where that exceeds 1; by precision
OTHER_LIMIT, GATES_LIMIT = 1e-2, 2e-6
_TURN = 0.05  # seconds


@dataclass(frozen=True)
class Row:
    """How far a GPU is from the CPU on one input that both ran, the CPU with the GPU's own scores in its routers.

    Attributes:
        scores, outputs: largest difference, over the largest value where that exceeds 1.
        sets: selections that differ although their scores are the same.
        gates: largest difference.
        error: why nothing was compared; empty where it was.
    """

    variant: str
    form: str
    case: str
    scores: float = 0.0
    sets: int = 0
    gates: float = 0.0
    outputs: float = 0.0
    limit: float = 0.0
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether arithmetic explains every difference; written so that NaN is wrong."""
        within = self.scores <= self.limit and self.outputs <= self.limit and self.gates <= GATES_LIMIT
        return within and not self.sets and not self.error


Run = tuple[Arrays, Sequence[Decision]]  # outputs, and decisions bottom first


def compared(mask: Any, gpu: Run, cpu: Run) -> dict[str, Any]:
    """Differences of one case, as ``Row`` holds them.

    Args:
        mask: [batch, tokens], which tokens count.
    """
    pairs = list(zip(gpu[1], cpu[1], strict=True))
    outputs = [[one[name][mask] if one[name].ndim == 3 else one[name] for one in (gpu[0], cpu[0])] for name in cpu[0]]
    return {
        "scores": _largest(_apart(a.scores[mask], b.scores[mask]) for a, b in pairs),
        "sets": sum(a.selected(i) != b.selected(i) for a, b in pairs for i in range(len(a.indices))),
        "gates": _largest(float(np.abs(a.gates - b.gates).max(initial=0.0)) for a, b in pairs),
        "outputs": _largest(_apart(*pair) for pair in outputs),
    }


def _largest(values: Iterable[float]) -> float:
    """Of some differences; NaN where one is."""
    return float(np.max(list(values), initial=0.0))


def _apart(found: Any, wanted: Any) -> float:
    found, wanted = (np.asarray(one, np.float64) for one in (found, wanted))
    return float(np.abs(found - wanted).max(initial=0.0) / max(1.0, np.abs(wanted).max(initial=0.0)))


class Follower:
    """A model on the CPU provider, whose routers take scores from elsewhere and still say their own."""

    def __init__(self, bundle: Bundle) -> None:
        proto = onnx.load(str(bundle.model_path), load_external_data=False)
        self._outputs = [output.name for output in proto.graph.output]
        routes = [node for node in proto.graph.node if node.op_type == "Route"]
        self._layers = [int(next(p.value for p in node.metadata_props if p.key == LAYER_TAG)) for node in routes]
        self._names = [(node.input[0], *node.output) for node in routes]
        kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL)
        for layer, names, node in zip(self._layers, self._names, routes, strict=True):
            for name, kind in zip(names, kinds, strict=True):
                proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
            node.input[0] = f"scores of layer {layer}"
            given = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, ["batch", "tokens"])
            proto.graph.input.append(given)
        folder = None if find_weights(proto, bundle.model_path.parent) is None else bundle.model_path.parent
        with kernels(on=False):
            self._session = open_session(proto.SerializeToString(), get_runtime(DEFAULT_TARGET), weights=folder)

    def run(self, inputs: Arrays, decisions: Sequence[Decision]) -> tuple[Arrays, list[Decision]]:
        """Outputs and decisions behind the scores of other decisions, and the scores that it would have had."""
        feed = {**inputs, **{f"scores of layer {one.layer}": one.scores for one in decisions}}
        asked = [*self._outputs, *(name for names in self._names for name in names)]
        found = dict(zip(asked, self._session.run(asked, feed), strict=True))
        made = [
            Decision(layer, *(found[name] for name in names))
            for layer, names in zip(self._layers, self._names, strict=True)
        ]
        return {name: found[name] for name in self._outputs}, sorted(made, key=lambda one: one.layer)


@contextmanager
def kernels(*, on: bool) -> Iterator[None]:
    """A block that opens sessions with native kernels, or with function bodies."""
    before = os.environ.get(native.SWITCH)
    os.environ[native.SWITCH] = "auto" if on else "portable"
    try:
        yield
    finally:
        os.environ.pop(native.SWITCH)
        if before is not None:
            os.environ[native.SWITCH] = before


def forms(bundle: Bundle) -> tuple[str, ...]:
    """How a variant's operators can run here: by native kernels only where they are built for its target."""
    library = bundle.runtime.kernels
    return FORMS if library and native.library(library) is not None else FORMS[1:]


def correctness(bundle: Bundle) -> list[Row]:
    """Every verification case of a variant, with kernels and with bodies, against the CPU."""
    follower, rows = Follower(bundle), []
    limit = LIMITS.get(bundle.variant.precision, OTHER_LIMIT)
    for form in forms(bundle):
        try:
            with kernels(on=form == FORMS[0]):
                probe = RoutingProbe.of(bundle)
        except CodaError as error:
            rows.append(Row(bundle.variant.name, form, "all", error=str(error)))
            continue
        rows += [_row(bundle, form, case, probe, follower, limit) for case in cases(bundle.manifest.signature)]
    return rows


def _row(bundle: Bundle, form: str, case: Case, probe: RoutingProbe, follower: Follower, limit: float) -> Row:
    name, inputs = bundle.variant.name, bundle.prepare(case.inputs)
    signature = bundle.manifest.signature
    given = signature.role("mask")
    lead = inputs[signature.lead.name]
    mask = np.ones(lead.shape[:2], bool) if given is None else inputs[given.name].astype(bool)
    try:
        gpu = probe.run(inputs)
        return Row(name, form, case.name, **compared(mask, gpu, follower.run(inputs, gpu[1])), limit=limit)
    except Exception as error:  # onnxruntime's own exceptions share no public base class; the other cases go on
        return Row(name, form, case.name, error=f"{type(error).__name__}: {first_line(error)}")


def launches(prepared: Callable[[], object]) -> int | str:
    """Kernels, copies and memsets of one run, or why they are not counted."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        prepared()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def times(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, the median of a turn; contenders take turns."""
    counts = {}
    for name, run in runs.items():
        for _ in range(3):
            began = time.perf_counter()
            run()
        counts[name] = max(2, min(100, round(_TURN / (time.perf_counter() - began))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            turn = []
            for _ in range(counts[name]):
                began = time.perf_counter()
                run()
                turn.append(time.perf_counter() - began)
            found[name].append(median(turn[1:]))
    return found


def contenders(bundles: dict[str, Bundle]) -> tuple[dict[str, openers.Prepare], dict[str, str]]:
    """Each variant with kernels, with bodies where those may differ, and as CUDA graphs; and why some are not there."""
    ready, absent = {}, {}
    for name, bundle in bundles.items():
        place = {"folder": str(bundle.folder), "target": bundle.variant.target, "precision": bundle.variant.precision}
        here = forms(bundle)
        if here != FORMS:
            absent[f"{name} {bundle.variant.name}, {FORMS[0]}"] = "none are built for its target here"
        for form, graph in (*((form, False) for form in here), (here[0], True)):
            label = f"{name} {bundle.variant.name}, {form}{', CUDA graph' if graph else ''}"
            try:
                with kernels(on=form == FORMS[0]):
                    ready[label] = openers.bundle(0, **place, cuda_graph=graph)
            except Exception as error:  # whatever onnxruntime raises
                absent[label] = f"{type(error).__name__}: {first_line(error)}"
    return ready, absent


def markdown(result: dict[str, Any]) -> str:
    """The result as tables."""
    lines = [f"# {result['gpu']}, onnxruntime {result['onnxruntime']}, {result['date']}", ""]
    lines += ["| variant | form | input | scores | sets | gates | outputs | |", "|---|---|---|---|---|---|---|---|"]
    for row in result["correctness"]:
        figures = [row["error"] or f"{row['scores']:.1e}", row["sets"], f"{row['gates']:.1e}", f"{row['outputs']:.1e}"]
        verdict = "right" if row["right"] else "WRONG"
        lines.append(f"| {' | '.join(map(str, (row['variant'], row['form'], row['case'], *figures, verdict)))} |")
    lines += ["", "| contender | launches |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in result["launches"].items()]
    for shape, table in result["times"].items():
        lines += ["", f"| {shape} | median, ms |", "|---|---|"]
        lines += [f"| {name} | {median(seconds) * 1e3:.3f} |" for name, seconds in table.items()]
    lines += ["", *(f"not measured: {name}: {why}" for name, why in result["absent"].items())]
    return "\n".join(lines).rstrip() + "\n"


def on_gpu(folder: Path) -> list[Bundle]:
    """The variants of a bundle that are for GPUs."""
    variants = [one for one in Bundle(folder).manifest.variants if get_runtime(one.target).device == GPU]
    return [Bundle(folder, target=one.target, precision=one.precision) for one in variants]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--dense", type=click.Path(path_type=Path), help="The same checkpoint compiled at --reduction 1.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("gpu-check"), show_default=True)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=(1, 8, 32), show_default=True)
@click.option("--tokens", multiple=True, type=click.IntRange(1), default=(128, 512), show_default=True)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(0), help="0 leaves times out.")
def main(
    bundle: Path, dense: Path | None, output: Path, batches: Sequence[int], tokens: Sequence[int], rounds: int
) -> None:
    """Check BUNDLE on this machine's GPU: results against the CPU, then launches, then times."""
    opened = on_gpu(bundle)
    if not opened:
        raise click.ClickException(f"{bundle} has no variant for GPUs: compile one with --target")
    output.mkdir(parents=True, exist_ok=True)
    rows = [row for one in opened for row in correctness(one)]
    card = card_here()
    result: dict[str, Any] = {
        "gpu": "no GPU" if card is None else card.name,
        "onnxruntime": ort.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "correctness": [{**asdict(row), "right": row.right} for row in rows],
        "launches": {},
        "times": {},
        "absent": {},
    }
    if rounds:
        pairs = {"CoDA": opened, "dense": on_gpu(dense) if dense else []}
        for i in range(max(map(len, pairs.values()))):
            ready, absent = contenders({name: found[i] for name, found in pairs.items() if i < len(found)})
            result["absent"] |= absent
            signature = opened[0].manifest.signature
            for shape in [(batch, length) for batch in batches for length in tokens if length <= signature.max_length]:
                runs = {name: prepare(signature.random(*shape)) for name, prepare in ready.items()}
                if not result["times"]:
                    result["launches"] |= {name: launches(run) for name, run in runs.items()}
                result["times"].setdefault(f"{shape[0]} x {shape[1]}", {}).update(times(runs, rounds))
    (output / "gpu_check.json").write_text(json.dumps(result, indent=1), "utf-8")
    (output / "gpu_check.md").write_text(markdown(result), "utf-8")
    click.echo(markdown(result))
    if not rows or not all(row.right for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
