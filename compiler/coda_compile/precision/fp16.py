"""fp16: embeddings, layers and norms in float16, weights and arithmetic; what decides and what answers in float32."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from coda_compile.errors import OptionError
from coda_compile.precision import Precision
from coda_compile.verify.parity import Tolerances
from coda_models.model import CodaModel

_FLOAT32 = ("head.", "after_pooling.", "ood.")


@torch.no_grad()
def _quantise(model: CodaModel, inputs: Iterable[Mapping[str, Tensor]], adapters: bool) -> None:
    """Round weights to numbers of float16 that stay float32 tensors: torch computes what the graph should.

    Raises:
        OptionError: a weight beyond the range of float16.
    """
    largest = torch.finfo(torch.float16).max
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point() or name.startswith(_FLOAT32) or ".router." in name:
            continue
        rounded = tensor.half()
        if not bool(torch.isfinite(rounded).all()):
            raise OptionError(
                "{name} has weights of up to {most:.3g}, and float16 ends at {largest:.0f}: give another {precision}",
                name=name,
                most=float(tensor.abs().max()),
                largest=largest,
            )
        tensor.copy_(rounded)


RECIPE = Precision(
    "fp16",
    "float16, routers and head float32",
    bits=16,
    half=True,
    tolerances=Tolerances(scores=1e-2, outputs=1e-2),
    # Nobody replays decisions there: a token whose score lies at the boundary may go another way.
    elsewhere=Tolerances(scores=1e-1, outputs=1e-1),
    quantise=_quantise,
    shared=False,  # what tasks swap is float32
)
