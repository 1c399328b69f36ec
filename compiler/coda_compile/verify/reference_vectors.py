"""Reference inputs and outputs in a bundle, to verify it anywhere without torch.

Tensors are laid out as ONNX's own test data are (``test_data_set_0/input_0.pb``, ``output_0.pb``); what the routers
decided, and by which margins, stands in ``expected.json``; what a model gives where the first token is routed in every
layer, in ``routed_outputs/``. Of several variants each but the one in ``model.onnx`` has such a set in a folder of its
own, and of several tasks each but the first a set by its name.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from coda_compile.verify.agreement import check_agreement
from coda_compile.verify.first_token import selecting, through_first
from coda_compile.verify.parity import CaseParity, Comparison, Tolerances, margin
from coda_ops.errors import first_line
from coda_ops.records import read_record, record_json
from coda_targets import Bundle, BundleError
from coda_targets.bundle import Arrays
from coda_targets.manifest import MODEL, PART, VariantInfo
from coda_targets.routing import Decision, RoutingProbe, prompt_tokens, valid_in_layers
from coda_targets.signature import Signature

DATA_SET = "test_data_set_0"
EXPECTED = "expected.json"
ROUTED = "routed_outputs"
_MOST_ALLOWED = 1.0  # difference; eight bits allow a tenth of that


@dataclass(frozen=True)
class _LayerRouting:
    """What the router of one layer decided, a row for each example.

    Attributes:
        scores: of the valid tokens.
        selected: positions, sorted.
        margins: between selected and others, ``None`` where none is left out.
    """

    layer: int
    scores: tuple[tuple[float, ...], ...]
    selected: tuple[tuple[int, ...], ...]
    margins: tuple[float | None, ...]


@dataclass(frozen=True)
class _Stored:
    """expected.json."""

    tolerances: Tolerances
    routing: tuple[_LayerRouting, ...]


@dataclass(frozen=True)
class ReferenceVectors:
    """One input with what is expected of it.

    Attributes:
        inputs, outputs: by name.
        mask: [batch, tokens], where the tokens that layers see are valid.
        decisions: of every routed layer.
        routed: outputs where decisions are those of ``through_first``.
        tolerances: what counts as arithmetic error.
    """

    inputs: Arrays
    mask: NDArray[np.bool_]
    outputs: Arrays
    decisions: list[Decision]
    routed: Arrays
    tolerances: Tolerances


def place_of(folder: Path, variant: VariantInfo) -> Path:
    """Where a bundle keeps the vectors of a variant."""
    return folder if variant.models[PART] == MODEL else folder / "variants" / variant.name


def _places(place: Path, task: str) -> tuple[Path, Path, Path]:
    """The data of a task and what is expected of them; the first task of a bundle has no name here."""
    if not task:
        return place / DATA_SET, place / EXPECTED, place / ROUTED
    own = place / "adapters"
    return own / f"{task}-test_data", own / f"{task}-{EXPECTED}", own / f"{task}-{ROUTED}"


def write(place: Path, vectors: ReferenceVectors, *, task: str = "") -> None:
    """Write what ``read`` reads.

    Args:
        place: see ``place_of``.
    """
    data, expected, elsewhere = _places(place, task)
    sets = (data, "input", vectors.inputs), (data, "output", vectors.outputs), (elsewhere, "output", vectors.routed)
    for folder, kind, arrays in sets:
        for i, (name, array) in enumerate(arrays.items()):
            folder.mkdir(parents=True, exist_ok=True)
            tensor = numpy_helper.from_array(array, name)
            (folder / f"{kind}_{i}.pb").write_bytes(tensor.SerializeToString(deterministic=True))
    mask = vectors.mask
    examples = range(mask.shape[0])
    routing = tuple(
        _LayerRouting(
            d.layer,
            scores=tuple(tuple(map(float, d.scores[e][mask[e]])) for e in examples),
            selected=tuple(tuple(d.selected(e)) for e in examples),
            margins=tuple(margin(d.scores[e], mask[e], d.selected(e)) for e in examples),
        )
        for d in vectors.decisions
    )
    expected.write_text(record_json(_Stored(vectors.tolerances, routing)), "utf-8")


@dataclass(frozen=True)
class Expected:
    """What a bundle should compute.

    Attributes:
        outputs: by name.
        tolerances: what counts as arithmetic error.
        routing: for each routed layer its scores, [batch, tokens], and the positions that each example selects.
        routed: outputs where the first token is routed in every layer.
    """

    outputs: Arrays
    routed: Arrays
    tolerances: Tolerances
    routing: dict[int, tuple[NDArray[np.float32], list[list[int]]]]


def read(place: Path, signature: Signature, task: str = "", *, prompt: int = 0) -> tuple[Arrays, Expected]:
    """Inputs, and what is expected of them.

    Args:
        place: see ``place_of``.
        signature: of the bundle.
        prompt: learned tokens in front of every sequence.

    Raises:
        BundleError: absent or damaged.
    """
    data, stored, elsewhere = _places(place, task)
    known = read_record(
        stored, _Stored, what="record of test data", remedy="compile the model again", error=BundleError
    )
    try:
        inputs, outputs, routed = _arrays(data, "input"), _arrays(data, "output"), _arrays(elsewhere, "output")
        tolerances = known.tolerances
        if not all(0 <= value <= _MOST_ALLOWED for value in asdict(tolerances).values()):
            raise ValueError("their tolerances would prove nothing")
        mask = valid_in_layers(signature.mask(inputs), prompt)
        routing = {one.layer: _routing(one, mask) for one in known.routing}
    except Exception as error:  # protobuf's DecodeError shares no public base class across its versions
        raise BundleError(f"the test data of {place} are damaged: {first_line(error)}; compile it again") from None
    if not outputs or (routing and not routed):
        lacking = elsewhere if outputs else data
        raise BundleError(f"{place} has no test data in {lacking.relative_to(place)}: compile the model again")
    return inputs, Expected(outputs, routed, tolerances, routing)


def _arrays(place: Path, kind: str) -> Arrays:
    found = {}
    for path in sorted(place.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1])):
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        found[tensor.name] = numpy_helper.to_array(tensor)
    return found


def _routing(stored: _LayerRouting, mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], list[list[int]]]:
    scores = np.zeros(mask.shape, np.float32)
    for example, row in enumerate(stored.scores):
        scores[example][mask[example]] = row
    selected = [list(row) for row in stored.selected]
    if len(selected) != len(mask) or not all(mask[e][row].all() for e, row in enumerate(selected)):
        raise ValueError("a selection that does not fit its input")
    return scores, selected


def verify_bundle(bundle: Bundle, task: str | None = None) -> CaseParity:
    """Check a bundle's files, run the test data of its variant here, and compare tie-aware.

    Args:
        task: of a bundle with several; the first one where none is named.

    Raises:
        BundleError: a file is missing or damaged, is in no manifest, or disagrees with it.
        VerificationError: this machine computes something else than the one that compiled it.
        TargetError: this machine cannot run the variant.
    """
    check_bundle(bundle)
    return verify_outputs(bundle, task)


def check_bundle(bundle: Bundle) -> None:
    """Compare every file of a bundle with its SHA-256, and what the files say with each other.

    Raises:
        BundleError: a file is missing or damaged, is in no manifest, or disagrees with it.
    """
    bundle.check()
    check_agreement(bundle)


def verify_outputs(bundle: Bundle, task: str | None = None) -> CaseParity:
    """Run the test data of a bundle's variant here; its files are known to be right. See ``verify_bundle``."""
    signature = bundle.manifest.signature
    first = not bundle.tasks or task in (None, bundle.tasks[0])
    place = place_of(bundle.folder, bundle.variant)
    with bundle.reading():
        prompt = prompt_tokens(bundle.manifest)
        inputs, expected = read(place, signature, "" if first or task is None else task, prompt=prompt)
    outputs, decisions = RoutingProbe.of(bundle).run(bundle.prepare(inputs), bundle.adapter(task))
    mask = valid_in_layers(signature.mask(inputs), prompt)
    batch, length = signature.shape(inputs)
    name = f"test data, {batch} x {length} {signature.unit}"
    comparison = Comparison(name, mask, expected.tolerances, replayed=False)
    if set(expected.routing) != {decision.layer for decision in decisions}:
        raise BundleError(f"{bundle.folder} records routing of other layers than its model has: compile it again")
    for decision in decisions:
        scores, selected = expected.routing[decision.layer]
        comparison.layer(scores, selected, decision)
    if (ood := bundle.ood(task)) is not None:
        comparison.flags(outputs, ood.threshold)
    result = comparison.outputs(expected.outputs, outputs)
    if decisions:
        given = [
            selecting(one.layer, expected.routing[one.layer][1], one.indices.shape[1], mask.shape[1])
            for one in decisions
        ]
        probe = RoutingProbe.of(bundle, decided=True)
        routed, _ = probe.run(bundle.prepare(inputs), bundle.adapter(task), through_first(given, mask))
        decided = Comparison(f"{name}, the first token routed in every layer", mask, expected.tolerances, replayed=True)
        for output, difference in decided.outputs(expected.routed, routed).outputs.items():
            result.outputs[output] = max(result.outputs[output], difference)
    return result
