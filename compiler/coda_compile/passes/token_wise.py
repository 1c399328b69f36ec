"""Which inputs of an operator it processes token by token, and which nodes read nothing but the number of tokens."""

import onnx_ir as ir

from coda_ops.catalogue import find_operator

_ALIKE = {"Add", "Sub", "Mul", "Div", "Gelu", "Erf", "Relu", "Tanh", "Sigmoid"}  # element by element


def has_tokens(value: ir.Value | None) -> bool:
    """Whether a value is [batch, tokens, width] with any number of tokens."""
    return value is not None and value.shape is not None and len(value.shape) == 3 and value.shape[1] != 1


def token_inputs(node: ir.Node) -> tuple[int, ...]:
    """Inputs whose tokens an operator treats one by one, so that fewer of them give fewer results; none for others."""
    kind = (node.domain, node.op_type)
    operator = find_operator(*kind)
    if operator is not None:
        return operator.token_inputs
    if kind == ("", "LayerNormalization"):
        return (0,) if node.attributes.get_int("axis", -1) in (-1, 2) else ()
    if kind == ("", "MatMul"):
        weight = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
        return (0,) if weight is not None and len(weight.shape) == 2 else ()
    if node.domain == "" and node.op_type in _ALIKE:
        wide = tuple(i for i, value in enumerate(node.inputs) if has_tokens(value))
        rest = [
            ir.convenience.get_const_tensor(v) for i, v in enumerate(node.inputs) if i not in wide and v is not None
        ]
        return wide if all(tensor is not None and len(tensor.shape) <= 1 for tensor in rest) else ()
    return ()


def asks_for_size(node: ir.Node) -> bool:
    """Whether a node reads batch or tokens alone, which a projection has in common with its input."""
    end = node.attributes.get_int("end", None) if node.op_type == "Shape" else None
    return end is not None and 0 <= end <= 2
