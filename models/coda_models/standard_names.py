"""Names of the tensors that transformers' own classes load."""

from collections.abc import Iterable
from copy import deepcopy

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

_MAPPINGS = (
    auto.MODEL_MAPPING,
    auto.MODEL_FOR_PRETRAINING_MAPPING,
    auto.MODEL_FOR_MASKED_LM_MAPPING,
    auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING,
    auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
)


def strange_names(names: Iterable[str], config: PretrainedConfig) -> list[str]:
    """Those of the names that no class of transformers' own has for a configuration, in order.

    A model may be loaded without the rest: the head of another task that it was pre-trained with, a pooler that nobody
    reads, positions that older releases saved. No tensor of theirs is part of what the loaded class computes.
    """
    names = set(names)
    return sorted(names - _standard(config)) if names else []


def _standard(config: PretrainedConfig) -> set[str]:
    """With and without the prefix that an encoder has inside a class with a head."""
    known: set[str] = set()
    config = deepcopy(config)
    config.num_labels = 2  # as DistilBERT's head for questions insists; names are the same
    for mapping in _MAPPINGS:
        if type(config) in mapping:
            with torch.device("meta"), torch.random.fork_rng():
                model: PreTrainedModel = mapping[type(config)](config)
            own = {*model.state_dict(), *(name for name, _ in model.named_buffers())}
            known |= own | {name.removeprefix(f"{model.base_model_prefix}.") for name in own}
    return known
