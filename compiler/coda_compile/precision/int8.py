"""int8: weights with a scale per output channel, activations with one per token, computed in the run."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from coda_compile.precision import Precision
from coda_compile.precision.layers.linear import QuantisedLinear
from coda_compile.precision.layers.replace import quantise_embeddings, replace_adapters, replace_linears
from coda_compile.verify.parity import Tolerances
from coda_models.model import CodaModel
from coda_ops import int8_linear


class Int8Linear(QuantisedLinear):
    """Int8: weight [inputs, outputs] uint8."""

    quantises_input = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, *int8_linear.quantise(linear.weight.detach().T))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return int8_linear.int8_linear(x, self.weight, self.scale, self.bias)


def _quantise(model: CodaModel, inputs: Iterable[Mapping[str, Tensor]], adapters: bool) -> None:
    replace_linears(model, Int8Linear)
    if adapters:  # every token goes through them
        replace_adapters(model, Int8Linear)
    quantise_embeddings(model)


RECIPE = Precision(
    "int8",
    "int8 weights, activations quantised token by token",
    bits=8,
    # The last bit of an activation may decide between two integers, which later layers amplify.
    elsewhere=Tolerances(scores=1e-1, outputs=1e-1),
    quantise=_quantise,
)
