"""Read the routing decisions of a compiled model.

A bundle's model returns its task's outputs alone. Here, in a copy in memory, the scores, positions and gates of every
Route node are outputs too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coda_ops.catalogue import find_operator
from coda_ops.files import private_folder
from coda_targets.bundle import Bundle
from coda_targets.errors import BundleError, TargetError
from coda_targets.manifest import Manifest
from coda_targets.runtimes import Runtime
from coda_targets.runtimes.session import check_declared, open_session, run_session
from coda_targets.signature import Arrays
from coda_targets.task_adapters import TaskAdapter
from coda_targets.weights import find_weights

# Metadata keys that export.py puts on nodes: the index of their layer, and the part of the model that they belong to.
JOINED = "+"  # between the names of weights that became one
LAYER_TAG = "coda.layer"
ROLE_TAG = "coda.role"
_DOMAIN = "ai.coda"
_FIELDS = ("scores", "indices", "gates", "used")


@dataclass(frozen=True)
class Decision:
    """One layer's routing of a batch.

    Attributes:
        layer: index, bottom first.
        scores: [batch, tokens] float32.
        indices, gates, used: [batch, K]; see ``coda_ops.route.route``.
    """

    layer: int
    scores: NDArray[np.float32]
    indices: NDArray[np.int64]
    gates: NDArray[np.float32]
    used: NDArray[np.bool_]

    def selected(self, example: int) -> list[int]:
        """Positions that one example routes, ascending."""
        return [int(i) for i in self.indices[example][self.used[example]]]


def prompt_tokens(manifest: Manifest) -> int:
    """Learned tokens in front of every sequence of a bundle."""
    return manifest.layers[0].prompt if manifest.layers else 0


def valid_in_layers(mask: NDArray[np.bool_], prompt: int) -> NDArray[np.bool_]:
    """Where the tokens that layers see are valid: learned ones stand in front of a sequence's own.

    Args:
        mask: [batch, tokens], of the sequences.
        prompt: how many learned ones.

    Returns:
        [batch, prompt + tokens].
    """
    return np.pad(mask, ((0, 0), (prompt, 0)), constant_values=True)


class RoutingProbe:
    """A session that returns routing decisions beside the model's own outputs.

    Args:
        model: an ONNX file whose Route nodes carry the metadata ``coda.layer``.
        products: also return what every product with int8 weights multiplies, in ``products`` by the weight's name.
        decided: take the routers' decisions from the caller, instead of making them.

    Attributes:
        products: of the last run, [..., inputs] each.

    Raises:
        BundleError: the file is missing or damaged.
        TargetError: onnx, or what the runtime needs, is not installed.
    """

    def __init__(
        self, model: Path, runtime: Runtime, *, threads: int = 0, products: bool = False, decided: bool = False
    ) -> None:
        self.products: Arrays = {}
        self._decided: list[tuple[str, ...]] = []  # of every layer, what its decision is fed as
        self._multiplied: list[tuple[str, str]] = []  # weight and input of every int8 linear layer
        self._layers: list[int] = []
        self._names: list[str] = []
        proto = self._read(model)
        self._outputs = [output.name for output in proto.graph.output]
        self._expose(proto, model, products)
        if decided:
            self._decide(proto)
        weights = find_weights(proto, model.parent)
        content = proto.SerializeToString()
        del proto
        if weights is not None:
            self._session = open_session(content, runtime, threads=threads, weights=weights)
            return
        with private_folder() as folder:  # from memory onnxruntime copies all weights once more
            copy = folder / model.name
            copy.write_bytes(content)
            del content
            try:
                self._session = open_session(copy, runtime, threads=threads)
            except BundleError as error:
                raise BundleError(str(error).replace(str(copy), str(model))) from None

    @classmethod
    def of(cls, bundle: Bundle, *, decided: bool = False) -> "RoutingProbe":
        """The probe of a bundle."""
        with bundle.reading(*bundle.model_files):
            probe = cls(bundle.model_path, bundle.runtime, threads=bundle.threads, decided=decided)
            check_declared(probe._session, bundle.manifest, bundle.model_path)
            return probe

    def _read(self, model: Path) -> Any:
        try:
            import onnx
        except ImportError:
            raise TargetError("reading routing decisions needs onnx: pip install onnx") from None
        try:
            proto = onnx.load(str(model), load_external_data=False)
        except Exception as error:  # protobuf's DecodeError shares no public base class across its versions
            raise BundleError(f"{model} is missing or damaged: {type(error).__name__}; compile it again") from None
        if not proto.graph.node:
            raise BundleError(f"{model} is damaged: it has no graph; compile it again")
        return proto

    def _expose(self, proto: Any, model: Path, products: bool) -> None:
        import onnx

        shown = set(self._outputs)

        def show(name: str, kind: int) -> None:
            if name not in shown:  # several products may read one tensor
                shown.add(name)
                proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))

        kinds = {"scores": onnx.TensorProto.FLOAT, "indices": onnx.TensorProto.INT64}
        kinds |= {"gates": onnx.TensorProto.FLOAT, "used": onnx.TensorProto.BOOL}
        dequantised = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
        quantised = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
        for node in proto.graph.node:
            for weights, multiplied in _quantised_matmuls(node, quantised, dequantised) if products else ():
                show(multiplied, onnx.TensorProto.FLOAT)
                self._multiplied += [(weight, multiplied) for weight in weights.split(JOINED)]
            if node.domain != _DOMAIN or node.op_type != "Route":
                continue
            layer = next((p.value for p in node.metadata_props if p.key == LAYER_TAG), "")
            if not layer.isdecimal():
                raise BundleError(f"{model} has a Route node without its layer: compile the model again")
            self._layers.append(int(layer))
            for field, name in zip(_FIELDS, (node.input[0], *node.output), strict=True):
                show(name, kinds[field])
                self._names.append(name)

    def _decide(self, proto: Any) -> None:
        """Make inputs of what the Route nodes give."""
        import onnx

        kinds = (onnx.TensorProto.INT64, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL)
        routes = [node for node in proto.graph.node if (node.domain, node.op_type) == (_DOMAIN, "Route")]
        self._decided = [tuple(node.output) for node in routes]
        given = {name for names in self._decided for name in names}
        for node in routes:
            proto.graph.node.remove(node)
            for name, kind in zip(node.output, kinds, strict=True):
                proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, ["batch", "slots_" + name]))
        for values in (proto.graph.output, proto.graph.value_info):
            kept = [value for value in values if value.name not in given]
            del values[:]
            values.extend(kept)

    def run(
        self, inputs: Arrays, adapter: TaskAdapter | None = None, decisions: Sequence[Decision] = ()
    ) -> tuple[Arrays, list[Decision]]:
        """The model's outputs and the decision of every routed layer, bottom first.

        Args:
            decisions: of every routed layer where the probe does not decide itself; their scores are not read.

        Raises:
            InputError: as for ``Bundle.run``.
        """
        by_layer = {decision.layer: decision for decision in decisions}
        chosen = [by_layer[layer] for layer in self._layers] if self._decided else []
        feed = dict(inputs)
        for given, one in zip(self._decided, chosen, strict=True):
            feed.update(zip(given, (one.indices, one.gates, one.used), strict=True))
        asked = [name for name in self._names if name not in feed]
        names = [*self._outputs, *asked, *(name for _, name in self._multiplied)]
        values = run_session(self._session, names, feed, adapter)
        outputs = dict(zip(self._outputs, values, strict=False))
        found = {**feed, **dict(zip(names, values, strict=True))}
        multiplied = values[len(self._outputs) + len(asked) :]
        self.products = {weight: value for (weight, _), value in zip(self._multiplied, multiplied, strict=True)}
        step = len(_FIELDS)
        made = [
            Decision(layer, *(found[name] for name in self._names[i * step : (i + 1) * step]))
            for i, layer in enumerate(self._layers)
        ]
        return outputs, sorted(made, key=lambda decision: decision.layer)


def _quantised_matmuls(
    node: Any, quantised: Mapping[str, str], dequantised: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Names of the weight, and of what it multiplies in float32, of each matmul that quantises its input.

    Args:
        quantised, dequantised: what QuantizeLinear and DequantizeLinear nodes read, by what they give.
    """
    operator = find_operator(node.domain, node.op_type)
    for matmul in operator.quantised_matmuls if operator is not None else ():
        yield node.input[matmul.weight], (node.output if matmul.inside else node.input)[matmul.multiplied]
    if node.op_type == "MatMul" and node.input[1] in dequantised:
        x = node.input[0]
        yield dequantised[node.input[1]], quantised.get(dequantised.get(x, ""), x)
