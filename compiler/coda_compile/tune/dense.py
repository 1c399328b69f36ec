"""The dense model that is to be routed: read, and refused where it cannot be routed or saved."""

import warnings
from copy import deepcopy
from pathlib import Path

from coda_compile.errors import CompileError, CompileWarning, OptionError
from coda_compile.sources import read_model
from coda_compile.sources.classes import set_classes
from coda_compile.sources.torch_model import TorchModel
from coda_compile.sources.truncation import longest
from coda_compile.tune.route_options import RouteOptions
from coda_compile.tune.savable import check_savable
from coda_models.model import CodaModel
from coda_targets.modalities.text import TEXT


def read_dense(model: CodaModel | Path | str, options: RouteOptions) -> TorchModel:
    """A model that can be routed and saved, with its tokenizer.

    Raises:
        CodaError: what stands in the way.
    """
    source = read_model(model, options.backbone)
    set_classes(source.model, options.problem_type, options.labels)
    source.tokenizer = deepcopy(options.tokenizer or source.tokenizer)
    dense = source.model
    if dense.signature.modality != TEXT:
        raise CompileError(f"this model takes {dense.signature.modality}, and only models of text can be routed")
    if source.tokenizer is None:
        raise OptionError("this model has no tokenizer to read {texts} with: give a {tokenizer}")
    reductions = dense.coda_config.layer_reductions(len(dense.layers))
    if any(r != 1 for r in reductions):
        found = ",".join(map(str, dict.fromkeys(reductions)))
        raise CompileError(f"this model routes already, at r = {found}: give the dense one, or compile it as it is")
    dense.signature = longest(dense.signature, source.tokenizer)
    source.tokenizer.model_max_length = dense.signature.max_length  # by which a checkpoint cuts texts
    check_savable(dense, source.kind)
    if any((source.about.get("prompts") or {}).values()):
        warnings.warn(
            "a checkpoint keeps no prompts of sentence-transformers: put them in front of your texts, here as well",
            CompileWarning,
            stacklevel=2,
        )
    return source
