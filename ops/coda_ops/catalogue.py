"""The operator catalogue: what is true of each operator, in one record that everything else reads.

The records are plain facts, and importing this module loads neither torch nor onnx. Schemas and function bodies stand
in the operator's own file, and are taken from there when they are asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from coda_ops import DOMAIN, RUNTIME_DOMAIN

if TYPE_CHECKING:
    from onnx import FunctionProto
    from onnx.defs import OpSchema


FLOAT, FLOAT16 = "float", "float16"
_HALF = (FLOAT, FLOAT16)  # of operators that graphs in float16 keep


@dataclass(frozen=True)
class QuantisedMatmul:
    """A matmul of an operator that quantises its input to int8 as it runs.

    Attributes:
        weight: index of the weight among the node's inputs.
        multiplied: index of what is quantised, among the node's inputs, or among its outputs where ``inside``.
        inside: whether the operator computes it itself.
    """

    weight: int
    multiplied: int
    inside: bool = False


@dataclass(frozen=True)
class Operator:
    """What is true of one operator.

    Attributes:
        name: of its nodes.
        file: module of ``coda_ops`` that defines it.
        domain: ``ai.coda``; or onnxruntime's own, whose operators need no function body.
        body: function in ``file`` that makes its function body.
        bodies: other such functions, by the runtime whose fastest they are.
        body_attributes: attributes of its nodes that ``body`` and ``bodies`` take, in order. One body serves a model,
            so all of its nodes share their values; other attributes stay free.
        torch: name in ``torch.ops.coda`` of what the exporter makes its nodes of; empty where passes alone make them.
        token_inputs: indices of the inputs, [..., tokens, hidden size], that it treats token by token.
        weights: indices of the inputs that those tokens are multiplied by.
        quantised_matmuls: in the order in which they run.
        attention: whether it mixes the tokens of a sequence, for as many as its first input has.
        types: what its tokens may be, as onnx names element types: what ``T`` of its schema allows. Function bodies and
            every library of native kernels compute in all of them.
        kernels: libraries of native kernels that have one of it, by their names in ``coda_ops.native.LIBRARIES``.
    """

    name: str
    file: str
    domain: str = DOMAIN
    body: str = "body"
    bodies: Mapping[str, str] = field(default_factory=dict)
    body_attributes: tuple[str, ...] = ()
    torch: str = ""
    token_inputs: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    quantised_matmuls: tuple[QuantisedMatmul, ...] = ()
    attention: bool = False
    types: tuple[str, ...] = (FLOAT,)
    kernels: tuple[str, ...] = ()

    def module(self) -> ModuleType:
        """The operator's file, with its torch operator and its schema registered."""
        return import_module(f"coda_ops.{self.file}")

    def schema(self) -> "OpSchema":
        """Its ONNX schema."""
        import onnx

        self.module()
        return onnx.defs.get_schema(self.name, self.domain)

    def function_body(self, attributes: Mapping[str, Any], runtime: str = "") -> "FunctionProto":
        """Its function body, of standard operators or onnxruntime's own.

        Args:
            attributes: of a node; see ``body_attributes``.
            runtime: takes the one that is fastest there, where there is such a one.
        """
        make = getattr(self.module(), self.bodies.get(runtime, self.body))
        body: FunctionProto = make(*(attributes[name] for name in self.body_attributes))
        return body


_ON_CPUS = ("cpu",)
_ON_EITHER = ("cpu", "cuda")
_MATMULS_OF_TWO = (QuantisedMatmul(2, 1), QuantisedMatmul(5, 1, inside=True))

OPERATORS = (
    Operator(
        "Route",
        "route",
        bodies={"openvino": "openvino_body", "cuda": "cuda_body", "tensorrt": "tensorrt_body"},
        body_attributes=("iterations", "epsilon_start", "epsilon_decay", "epsilon_final"),
        torch="route",
        kernels=_ON_EITHER,
    ),
    Operator(
        "TakeTokens",
        "take_tokens",
        bodies={"openvino": "openvino_body"},
        torch="take_tokens",
        types=_HALF,
        kernels=_ON_EITHER,
    ),
    Operator(
        "PutTokens",
        "put_tokens",
        bodies={"openvino": "openvino_body"},
        torch="put_tokens",
        types=_HALF,
        kernels=_ON_EITHER,
    ),
    Operator("PutDifference", "put_tokens", body="difference_body", types=_HALF, kernels=_ON_EITHER),
    Operator("BlendTokens", "put_tokens", body="blend_body", types=_HALF, kernels=_ON_CPUS),
    Operator("SetTokens", "set_tokens", torch="set_tokens", types=_HALF, kernels=_ON_CPUS),
    Operator("PackTokens", "pack_tokens", types=_HALF, kernels=_ON_CPUS),
    Operator("UnpackTokens", "unpack_tokens", types=_HALF, kernels=_ON_CPUS),
    Operator("EmbedNorm", "embed_norm", kernels=_ON_CPUS),
    Operator("Int8EmbedNorm", "embed_norm", body="int8_body", kernels=_ON_CPUS),
    Operator("AddNorm", "add_norm", token_inputs=(0, 1), types=_HALF, kernels=_ON_CPUS),
    Operator("AddGelu", "add_gelu", token_inputs=(0,), kernels=_ON_CPUS),
    Operator("SelfAttention", "self_attention", attention=True, types=_HALF, kernels=_ON_CPUS),
    Operator("KToAllAttention", "k_to_all_attention", attention=True, types=_HALF, kernels=_ON_CPUS),
    Operator("CrossAttention", "k_to_all_attention", body="cross_body", attention=True, types=_HALF, kernels=_ON_CPUS),
    Operator("Adapter", "adapter", torch="adapter", token_inputs=(0,), weights=(1, 3), types=_HALF),
    Operator("AddAdapter", "add_adapter", token_inputs=(0, 1), weights=(2, 4), types=_HALF, kernels=_ON_CPUS),
    Operator(
        "AddSwishAdapter",
        "add_adapter",
        body="swish_body",
        token_inputs=(0, 1),
        weights=(2, 4),
        types=_HALF,
        kernels=_ON_CPUS,
    ),
    Operator("AddLowRank", "add_low_rank", token_inputs=(0, 1), weights=(2, 3), types=_HALF, kernels=_ON_CPUS),
    Operator(
        "Int8Linear",
        "int8_linear",
        torch="int8_linear",
        token_inputs=(0,),
        weights=(1,),
        quantised_matmuls=(QuantisedMatmul(1, 0),),
        kernels=_ON_CPUS,
    ),
    Operator(
        "Int8LinearGelu",
        "int8_linear",
        body="gelu_body",
        token_inputs=(0,),
        weights=(1,),
        quantised_matmuls=(QuantisedMatmul(1, 0),),
        kernels=_ON_CPUS,
    ),
    Operator(
        "Int8AddAdapter",
        "int8_add_adapter",
        token_inputs=(0, 1),
        weights=(2, 5),
        quantised_matmuls=_MATMULS_OF_TWO,
        kernels=_ON_CPUS,
    ),
    Operator(
        "Int8RouterAdapter",
        "int8_add_adapter",
        body="router_body",
        token_inputs=(0, 1),
        weights=(2, 5, 8),
        quantised_matmuls=_MATMULS_OF_TWO,
        kernels=_ON_CPUS,
    ),
    Operator(
        "Int8AddLowRank",
        "int8_add_low_rank",
        token_inputs=(0, 1),
        weights=(2, 5),
        quantised_matmuls=_MATMULS_OF_TWO,
        kernels=_ON_CPUS,
    ),
    Operator(
        "Int8RouterLowRank",
        "int8_add_low_rank",
        body="router_body",
        token_inputs=(0, 1),
        weights=(2, 5, 8),
        quantised_matmuls=_MATMULS_OF_TWO,
        kernels=_ON_CPUS,
    ),
    Operator(
        "Int8StaticLinear",
        "int8_static_linear",
        torch="int8_static_linear",
        token_inputs=(0,),
        weights=(1,),
        quantised_matmuls=(QuantisedMatmul(1, 0),),
    ),
    Operator(
        "MatMulNBits", "matmul_nbits", domain=RUNTIME_DOMAIN, torch="matmul_nbits", token_inputs=(0,), weights=(1,)
    ),
)
_BY_KEY = {(operator.domain, operator.name): operator for operator in OPERATORS}


def find_operator(domain: str, name: str) -> Operator | None:
    """The record of a node's operator; ``None`` of standard ones and others that are not in the catalogue."""
    return _BY_KEY.get((domain, name))
