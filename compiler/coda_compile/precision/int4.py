"""int4: weights with a scale per block of input channels; activations and arithmetic stay float32."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from coda_compile.precision import Precision
from coda_compile.precision.layers.linear import QuantisedLinear
from coda_compile.precision.layers.replace import quantise_embeddings, replace_linears
from coda_compile.verify.parity import Tolerances
from coda_models.model import CodaModel
from coda_ops import matmul_nbits


class Int4Linear(QuantisedLinear):
    """Int4: weight [outputs, blocks, 16] uint8, scale [outputs * blocks]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, *matmul_nbits.quantise(linear.weight.detach().T))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return matmul_nbits.matmul_nbits(x, self.weight, self.scale) + self.bias


def _quantise(model: CodaModel, inputs: Iterable[Mapping[str, Tensor]], adapters: bool) -> None:
    replace_linears(model, Int4Linear)
    quantise_embeddings(model)


RECIPE = Precision(
    "int4",
    "int4 weights, the smallest file",
    bits=4,
    elsewhere=Tolerances(),
    quantise=_quantise,
    chosen=False,  # weights are dequantised as they are multiplied: smaller, and no faster than float32
)
