"""int8-static: as int8, but with one calibrated activation scale and zero point per linear layer."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from coda_compile.errors import CompileError
from coda_compile.precision import Precision
from coda_compile.precision.layers.linear import QuantisedLinear
from coda_compile.precision.layers.replace import quantise_embeddings, replace_adapters, replace_linears
from coda_compile.verify.parity import Tolerances
from coda_models.model import CodaModel
from coda_ops import int8_static_linear


class Int8StaticLinear(QuantisedLinear):
    """Int8 with a static activation scale: weight [inputs, outputs] int8.

    Args:
        low, high: the range of the activations.
    """

    quantises_input = True

    def __init__(self, linear: nn.Linear, low: float, high: float) -> None:
        super().__init__(linear, *int8_static_linear.quantise_weight(linear.weight.detach().T))
        x_scale, x_zero_point = int8_static_linear.quantisation_of(low, high)
        self.x_scale: Tensor
        self.x_zero_point: Tensor
        self.register_buffer("x_scale", x_scale)
        self.register_buffer("x_zero_point", x_zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        own = self.weight, self.scale, self.bias, self.x_scale, self.x_zero_point
        return int8_static_linear.int8_static_linear(x, *own)


class _Observed(nn.Module):
    """A linear layer that remembers the range of its activations."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.low, self.high = linear, torch.tensor(math.inf), torch.tensor(-math.inf)

    def forward(self, x: Tensor) -> Tensor:
        low, high = torch.aminmax(x)
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        y: Tensor = self.linear(x)
        return y


@torch.inference_mode()
def _quantise(model: CodaModel, inputs: Iterable[Mapping[str, Tensor]], adapters: bool) -> None:
    replace_linears(model, _Observed)
    if adapters:
        replace_adapters(model, _Observed)
    quantise_embeddings(model)
    for one in inputs:
        model(**one)
    for path, parent in list(model.named_modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, _Observed):
                continue
            low, high = float(module.low), float(module.high)
            if not (math.isfinite(low) and math.isfinite(high)):
                what = "nothing" if low > high else "numbers that are not finite"
                raise CompileError(f"{path}.{name} is given {what} by the texts to calibrate with: give others")
            setattr(parent, name, Int8StaticLinear(module.linear, low, high))


RECIPE = Precision(
    "int8-static",
    "int8 weights, activations quantised by calibrated scales",
    bits=8,
    # As in int8: the last bit of an activation may decide between two integers.
    elsewhere=Tolerances(scores=1e-1, outputs=1e-1),
    quantise=_quantise,
    calibrated=True,
    shared=False,
)
