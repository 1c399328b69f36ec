"""What onnxruntime's CUDA provider makes of a model: placement, copies, fusions, launches, CUDA graphs, memory."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.cuda_stand_in.build import HERE, StandIn, StandInError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
LAUNCHES = ("kernel", "cublas", "cudnn", "memset")  # events that are work for the device
COPY_NODES = ("MemcpyToHost", "MemcpyFromHost")


@dataclass(frozen=True)
class Node:
    """A node that ran, with the element types of what it read and wrote, prepacked weights aside: ``int64``, ``float``."""

    operator: str
    provider: str
    input: tuple[str, ...]
    output: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """One line of the stand-in's log.

    Attributes:
        event: what was asked for; README.md lists the words.
        name: the kernel's or function's.
        size: blocks of a kernel, bytes of a copy, memset or allocation, nodes of a graph.
        captured: whether it became part of a CUDA graph instead of running.
        library, image: where a kernel's code lies: a file, and the offset in it.
    """

    event: str
    name: str
    size: int
    captured: bool
    library: str = ""
    image: int = -1


@dataclass(frozen=True)
class Run:
    """What three runs of one shape asked the device for: the first, which may warm up, and a later one."""

    shape: tuple[int, ...]
    first: tuple[Event, ...]
    later: tuple[Event, ...]

    @property
    def launches(self) -> int:
        """Kernels, cuBLAS and cuDNN operations and memsets of a later run."""
        return sum(event.event in LAUNCHES for event in self.later)

    def count(self, *events: str) -> int:
        """How often a later run asked for something."""
        return sum(event.event in events for event in self.later)

    def by_name(self) -> Counter[tuple[str, str]]:
        """Launches of a later run by kind and name."""
        return Counter((event.event, event.name) for event in self.later if event.event in LAUNCHES)


@dataclass(frozen=True)
class Observation:
    """What the provider made of one model.

    Attributes:
        onnxruntime: its version.
        nodes: those that ran, each once.
        assigned: how many nodes onnxruntime says it gave to each provider; its fusions come later.
        operators: of the model as onnxruntime optimised it, copies among them.
        opened: events of making the session.
        peak_bytes: most device memory that the session held at once.
        runs: one a shape.
    """

    onnxruntime: str
    nodes: tuple[Node, ...]
    assigned: dict[str, int]
    operators: Counter[str]
    opened: tuple[Event, ...]
    peak_bytes: int
    runs: tuple[Run, ...]

    @property
    def on_cpu(self) -> list[Node]:
        """Nodes that ran on the CPU."""
        return [node for node in self.nodes if node.provider == CPU]

    @property
    def copies(self) -> int:
        """Nodes that onnxruntime added to carry a tensor between the CPU and the device."""
        return sum(self.operators[name] for name in COPY_NODES)


def observe(
    stand_in: StandIn,
    model: Path,
    shapes: Iterable[Sequence[int]] = ((1, 512),),
    *,
    cuda_graph: bool = False,
    kernels: Path | None = None,
    **settings: object,
) -> Observation:
    """Run a model in a process of its own, on the stand-in.

    Args:
        shapes: sizes of the inputs' free axes, in the order in which their names appear.
        cuda_graph: whether runs are captured and replayed.
        kernels: a library of custom operators, for CUDA.
        settings: of the stand-in; ``capability="8.6"`` is CUDA_STAND_IN_CAPABILITY.

    Raises:
        StandInError: the model does not open or run on the CUDA provider; the message is onnxruntime's.
    """
    request = {
        "model": str(model),
        "shapes": [list(shape) for shape in shapes],
        "options": {"use_tf32": "0", "enable_cuda_graph": str(int(cuda_graph))},
        "kernels": str(kernels) if kernels else None,
    }
    with TemporaryDirectory(prefix="coda-cuda-") as folder:
        log = Path(folder) / "log"
        log.touch()
        done = subprocess.run(
            [sys.executable, str(HERE / "drive.py"), json.dumps(request)],
            env=stand_in.environment(log=log, **settings),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise StandInError(
                f"{model} does not run on the stand-in (exit status {done.returncode}): {done.stderr[-4000:]}"
            )
        written = log.read_bytes()
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])

    def events(start: int, end: int) -> tuple[Event, ...]:
        return tuple(Event(**json.loads(line)) for line in written[start:end].splitlines())

    return Observation(
        onnxruntime=answer["onnxruntime"],
        nodes=tuple(
            Node(node["operator"], node["provider"], tuple(node["input"]), tuple(node["output"]))
            for node in answer["nodes"]
        ),
        assigned=answer["assigned"],
        operators=Counter(answer["operators"]),
        opened=events(*answer["opened"]),
        peak_bytes=_most_held(events(0, len(written))),
        runs=tuple(
            Run(tuple(run["shape"]), events(*run["marks"][:2]), events(*run["marks"][2:])) for run in answer["runs"]
        ),
    )


def _most_held(events: Iterable[Event]) -> int:
    """Most bytes of device memory that were allocated at once."""
    held = most = 0
    for event in events:
        if event.name == "device" and event.event in ("allocate", "free"):
            held += event.size if event.event == "allocate" else -event.size
            most = max(most, held)
    return most
