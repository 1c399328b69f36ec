"""Models that a checkpoint can hold, and what of the others it has no place for."""

from coda_compile.sources.reference import answers, check_same, few_tokens
from coda_models.checkpoint import rebuilt
from coda_models.errors import CheckpointError, UnsupportedModelError
from coda_models.model import CodaModel


def check_savable(model: CodaModel, kind: str) -> None:
    """Refuse a model that would come back from a checkpoint as another one, before anything is fitted to it.

    Args:
        model: at r = 1.
        kind: what it was recognised as, for messages.

    Raises:
        UnsupportedModelError: names the part, and says what to do.
        CompileError: a copy from a checkpoint computes something else.
    """
    try:
        copy = rebuilt(model)
    except CheckpointError as error:
        raise UnsupportedModelError(f"this {kind} cannot be routed, {error}: compile it as it is") from error
    inputs = few_tokens(model.signature)
    check_same(copy, inputs, answers(model, inputs), "its original")
