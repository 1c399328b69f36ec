"""Registering the ``ai.coda`` operators with onnx, and writing their function bodies."""

from collections.abc import Sequence

import onnx
import onnx.defs
import onnx.parser
from onnx.defs import OpSchema

from coda_ops import DOMAIN, VERSION
from coda_ops.catalogue import find_operator

BODY_OPSET = 18  # the default-domain opset that every function body is written in


def register(schema: OpSchema) -> OpSchema:
    """Make a schema known to onnx's checker and shape inference; a second call is harmless."""
    if not onnx.defs.has(schema.name, schema.domain):
        onnx.defs.register_schema(schema)
    return schema


def function(signature: str, body: str, *, domains: Sequence[str] = ()) -> onnx.FunctionProto:
    """Parse a function of the domain from ONNX's own text syntax.

    Args:
        signature: name, attributes, inputs and outputs, as in ``Adapter (x) => (y)``.
        body: the statements, of standard operators of opset ``BODY_OPSET``; constants are tensors (``value``), because
            tools that read ONNX files take no other for a number of its own type.
        domains: others whose operators it uses, in version 1.
    """
    others = "".join(f', "{domain}" : 1' for domain in domains)
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {BODY_OPSET}{others}]>'
    return onnx.parser.parse_function(f"{header}\n{signature}\n{{\n{body}\n}}")


def formal(name: str, type_: str, description: str) -> OpSchema.FormalParameter:
    """One input or output of a schema."""
    return OpSchema.FormalParameter(name, type_, description)


def schema(
    name: str,
    doc: str,
    inputs: list[OpSchema.FormalParameter],
    outputs: list[OpSchema.FormalParameter],
    *,
    attributes: list[OpSchema.Attribute] | None = None,
    domain: str = DOMAIN,
) -> OpSchema:
    """A registered schema of an operator in the catalogue; ``T`` ranges over the types of its record."""
    operator = find_operator(domain, name)
    assert operator is not None
    generic = any(one.type_str == "T" for one in inputs)
    constraints = [("T", [f"tensor({one})" for one in operator.types], "Tokens.")] if generic else []
    return register(
        OpSchema(
            name,
            domain,
            VERSION,
            doc=doc,
            inputs=inputs,
            outputs=outputs,
            type_constraints=constraints,
            attributes=attributes or [],
        )
    )
