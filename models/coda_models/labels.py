"""The loss of labels, as transformers' own heads compute it."""

import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

MULTI_LABEL, REGRESSION = "multi_label_classification", "regression"


def loss_of_labels(logits: Tensor, labels: Tensor, config: PretrainedConfig, task: str) -> Tensor:
    """Cross-entropy, binary cross-entropy of labels that may be several, or squared distance of numbers.

    Which one is the configuration's ``problem_type``. Where it says none, one logit is a number, and several with
    floats for labels are labels at once; of these the configuration says so from then on, as transformers has it, so
    that whoever reads it later knows what logits mean.

    Args:
        logits: [batch, labels] or [batch, tokens, labels].
        labels: [batch] or [batch, tokens] of class indices, -100 for none; [batch, labels] of 0 and 1; or [batch] or
            [batch, labels] of numbers.

    Returns:
        A scalar, float32.
    """
    logits = logits.float()
    if task == "sequence-classification":
        if config.problem_type is None and logits.shape[-1] > 1 and labels.is_floating_point():
            config.problem_type = MULTI_LABEL
        if config.problem_type == MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        if config.problem_type == REGRESSION or logits.shape[-1] == 1:
            return F.mse_loss(logits, labels.float().reshape(logits.shape))
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
