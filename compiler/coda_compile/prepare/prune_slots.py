"""Remove, before export, slots whose gates stay under a threshold on calibration data."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from coda_compile.bundling.writer import label_names, logits_of
from coda_compile.errors import CompileError, OptionError
from coda_compile.prepare.pruning import PrunedLayer, Pruning
from coda_models.layers.layer import Routing
from coda_models.model import CodaModel, CodaOutput
from coda_ops.capacity import slot_count
from coda_targets.manifest import MULTI_LABEL, REGRESSION

_MOST_CHANGED = 0.01  # of the answers to the texts, before a threshold is refused
_FAR = 0.01  # 1 - cosine, from which a sentence embedding counts as another answer


@torch.inference_mode()
def prune_slots(model: CodaModel, threshold: float, texts: Iterable[Mapping[str, Tensor]]) -> Pruning:
    """Raise each routed layer's r, in place, as far as every gate that reached the threshold in a text keeps its slot.

    From then on the soft top-k hands its gates to fewer slots. What that and the slots that went change together is
    measured on the same texts.

    Args:
        threshold: in (0, 1).
        texts: the model's inputs, batch by batch without padding.

    Raises:
        CompileError: no layer routes.
        OptionError: there are no texts, more than one answer in a hundred is another then, or the model gives numbers,
            which are neither the same nor others.
    """
    meaning = logits_of(model)
    if meaning is not None and (meaning.problem_type == REGRESSION or len(label_names(model)) < 2):
        raise OptionError(
            "{prune_gates} bounds how many answers are others, and this model gives a number (problem_type {kind!r}, "
            "num_labels = {labels}): leave it whole",
            kind=meaning.problem_type,
            labels=len(label_names(model)),
        )
    each = meaning is not None and meaning.problem_type == MULTI_LABEL
    batches = list(texts)
    if not batches:
        raise OptionError("{prune_gates} looks at gates in texts, and {calibration} holds none: give some")
    before = [model(**batch, output_routing=True) for batch in batches]
    ratios, pruned = [], list[PrunedLayer]()
    for i, layer in enumerate(model.coda_layers()):
        routings = [output.routing[i] for output in before if output.routing[i] is not None]
        ratio = max([layer.reduction, _widest(routings, threshold)]) if routings else layer.reduction
        ratios.append(ratio)
        if ratio > layer.reduction:
            pruned.append(PrunedLayer(i, str(layer.reduction), str(ratio), _dropped(routings, ratio)))
    if all(ratio == 1 for ratio in ratios):
        raise CompileError("this model routes in no layer, so that there are no gates to prune")
    if pruned:
        model.set_reduction([str(ratio) for ratio in ratios])
    compared = [_compare(old, model(**batch), each) for old, batch in zip(before, batches, strict=True)]
    others, far = torch.cat([others for others, _ in compared]), torch.cat([far for _, far in compared])
    if float(others.float().mean()) > _MOST_CHANGED:
        raise OptionError(
            "{prune_gates} {threshold:g} changes {changed} of {answers} answers to the texts of {calibration}, more "
            "than 1 in 100: give a lower threshold",
            threshold=threshold,
            changed=int(others.sum()),
            answers=others.numel(),
        )
    of_logits = before[0].logits is not None
    return Pruning(threshold, others.numel(), int(others.sum()), float(far.max()), of_logits, tuple(pruned))


def _widest(routings: Sequence[Routing], threshold: float) -> Fraction:
    """The r at which every gate that reaches the threshold has a slot; one slot is always left."""
    return min(
        Fraction(routing.scores.shape[1], max(1, int(reached)))
        for routing in routings
        for reached in (routing.gates >= threshold).sum(1)
    )


def _dropped(routings: Sequence[Routing], ratio: Fraction) -> float:
    """The highest gate that has no slot at another r; 0 where all have one."""
    lost = [routing.gates.sort(descending=True).values for routing in routings]
    lost = [gates[:, slot_count(one.scores.shape[1], ratio) :] for gates, one in zip(lost, routings, strict=True)]
    return max((float(gates.max()) for gates in lost if gates.numel()), default=0.0)


def _compare(old: CodaOutput, new: CodaOutput, each: bool) -> tuple[Tensor, Tensor]:
    """Which predictions changed, and how far each moved. [predictions] each

    A prediction is the best label or, where ``each`` label is decided on its own, all that are more likely than not.
    """
    if old.logits is not None and new.logits is not None:
        if each:
            other = ((old.logits > 0) != (new.logits > 0)).any(-1)
        else:
            other = old.logits.argmax(-1) != new.logits.argmax(-1)
        return other.flatten(), (old.logits - new.logits).abs().amax(-1).flatten()
    assert old.sentence_embedding is not None
    assert new.sentence_embedding is not None
    far = 1 - F.cosine_similarity(old.sentence_embedding, new.sentence_embedding)
    return far > _FAR, far
