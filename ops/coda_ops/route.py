"""``ai.coda::Route``: which tokens go through the heavy layer, and with what weight.

Selection is the stable top-k of the scores, gates are the soft top-k of Lei et al. 2023 (arXiv 2304.04947, section 4.2)
after Qian et al. 2022 (arXiv 2211.01267).
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from torch import Tensor

from coda_ops.capacity import slot_count
from coda_ops.domain import formal, function, schema

# Valid scores are saturated to ±LIMIT and padding sits below them all, so that an infinite score of a valid token
# still beats padding, in float32.
LIMIT = 1e29
PADDING = -1e30


@dataclass(frozen=True)
class Schedule:
    """How ε falls over the iterations of the soft top-k: ``max(final, start * decay**t)``."""

    iterations: int = 20
    start: float = 4.0
    decay: float = 0.7
    final: float = 0.03

    def epsilons(self) -> list[float]:
        """One ε for each iteration, largest first."""
        return [max(self.final, self.start * self.decay**t) for t in range(self.iterations)]


def saturate(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores in float32 or better, valid ones within ±LIMIT, padding below them all. [batch, tokens]"""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return wide.clamp(-LIMIT, LIMIT).masked_fill(~mask, PADDING)


def soft_top_k(scores: Tensor, mask: Tensor, reduction: Fraction, schedule: Schedule) -> Tensor:
    """Gates λ of every token, differentiable through all iterations.

    ε divides rounding errors too: in float32 a gate would be off by 1e-5 at scores of a few units and ε = 0.03, and
    every runtime would be off in its own way. So the iteration runs in float64, which costs next to nothing at this
    size (devices without it, mps, take float32), on scores less the row's highest, which leaves gates as they are.

    Args:
        scores: [batch, tokens], any floating type.
        mask: [batch, tokens] bool, true for valid tokens.
        reduction: r; an example of n valid tokens routes k = ceil(n / r) of them.

    Returns:
        [batch, tokens] in [0, 1], float32 or the wider type of scores: exactly 1 where k = n, 0 for padding. After
        finitely many iterations Σλ is near, not equal to, k; the iteration is the definition, its limit is no
        substitute.
    """
    saturated = saturate(scores, mask)
    s = saturated if saturated.device.type == "mps" else saturated.double()
    s = s - s.detach().amax(-1, keepdim=True)
    n = mask.sum(-1, keepdim=True)  # [batch, 1]
    k = slot_count(n, reduction)  # [batch, 1]
    log_k = k.clamp(min=1).to(s.dtype).log()
    u, bound, epsilon = s, s, 1.0
    for epsilon in schedule.epsilons():
        bound = epsilon * (torch.logsumexp(u / epsilon, -1, keepdim=True) - log_k)  # [batch, 1], the paper's -a
        u = torch.minimum(s, bound)
    gates = torch.exp(torch.clamp((s - bound) / epsilon, max=0.0))
    return torch.where(mask & (k < n), gates, mask.to(gates.dtype)).to(saturated.dtype)


@torch.library.custom_op("coda::route", mutates_args=())
def _route(
    scores: Tensor,
    mask: Tensor,
    numerator: int,
    denominator: int,
    iterations: int,
    epsilon_start: float,
    epsilon_decay: float,
    epsilon_final: float,
) -> tuple[Tensor, Tensor, Tensor]:
    reduction = Fraction(numerator, denominator)
    tokens = scores.shape[1]
    slots = slot_count(tokens, reduction)
    k = slot_count(mask.sum(-1, keepdim=True), reduction)  # [batch, 1]
    order = saturate(scores, mask).argsort(dim=-1, descending=True, stable=True)[:, :slots]
    used = torch.arange(slots, device=scores.device) < k  # [batch, slots]
    # Unused slots keep distinct positions of their own, behind the used ones, so that a scatter never collides.
    indices = torch.where(used, order, order + tokens).sort(-1).values % tokens
    schedule = Schedule(iterations, epsilon_start, epsilon_decay, epsilon_final)
    gates = soft_top_k(scores, mask, reduction, schedule).gather(1, indices)
    return indices, gates.masked_fill(~used, 0.0), used


@_route.register_fake
def _(
    scores: Tensor,
    mask: Tensor,
    numerator: int,
    denominator: int,
    iterations: int,
    epsilon_start: float,
    epsilon_decay: float,
    epsilon_final: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens = scores.shape
    slots = slot_count(tokens, Fraction(numerator, denominator))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return (
        scores.new_empty((batch, slots), dtype=torch.int64),
        scores.new_empty((batch, slots), dtype=wide),
        scores.new_empty((batch, slots), dtype=torch.bool),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, mask, p, q, *schedule = inputs
    indices, _, used = output
    ctx.save_for_backward(scores, mask, indices, used)
    ctx.reduction, ctx.schedule = Fraction(p, q), Schedule(*schedule)


def _backward(ctx: Any, _indices: Any, grad: Tensor, _used: Any) -> tuple[Any, ...]:
    scores, mask, indices, used = ctx.saved_tensors
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        gates = soft_top_k(leaf, mask, ctx.reduction, ctx.schedule).gather(1, indices)
        (grad_scores,) = torch.autograd.grad(gates, leaf, grad.masked_fill(~used, 0.0))
    return grad_scores, *(None,) * 7


_route.register_autograd(_backward, setup_context=_save)


def route(scores: Tensor, mask: Tensor, reduction: Fraction, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """Select k = ceil(n / r) of each example's n valid tokens and weigh them.

    Args:
        scores: [batch, tokens] floating. Selection takes the highest, ties to the lowest position.
        mask: [batch, tokens] bool, true for valid tokens; padding is never selected.
        reduction: r = p/q >= 1.

    Returns:
        indices: [batch, K] int64 positions, K = ceil(tokens / r); used slots first, ascending; distinct in a row.
        gates: [batch, K] in [0, 1], 0 in unused slots; differentiable with respect to scores.
        used: [batch, K] bool, true for the first k slots of an example.
    """
    p, q = reduction.numerator, reduction.denominator
    s = schedule
    result: tuple[Tensor, Tensor, Tensor] = _route(scores, mask, p, q, s.iterations, s.start, s.decay, s.final)
    return result


SCHEMA = schema(
    "Route",
    "Stable top-k selection of ceil(n * denominator / numerator) of each row's n valid tokens, with soft top-k gates. "
    "Used slots come first, ascending; unused slots hold distinct unselected positions and gate 0.",
    [
        formal("scores", "tensor(float)", "[batch, tokens]; NaN is not allowed."),
        formal("mask", "tensor(bool)", "[batch, tokens], true for valid tokens."),
    ],
    [
        formal("indices", "tensor(int64)", "[batch, K], K = ceil(tokens * denominator / numerator)."),
        formal("gates", "tensor(float)", "[batch, K] in [0, 1]."),
        formal("used", "tensor(bool)", "[batch, K], true for the slots in use."),
    ],
    attributes=[
        OpSchema.Attribute("numerator", OpSchema.AttrType.INT, "p of the reduction r = p/q.", required=True),
        OpSchema.Attribute("denominator", OpSchema.AttrType.INT, "q of the reduction r = p/q.", required=True),
        OpSchema.Attribute("iterations", OpSchema.AttrType.INT, "T of the soft top-k.", required=True),
        OpSchema.Attribute("epsilon_start", OpSchema.AttrType.FLOAT, "ε of the first iteration.", required=True),
        OpSchema.Attribute("epsilon_decay", OpSchema.AttrType.FLOAT, "Factor of ε an iteration.", required=True),
        OpSchema.Attribute("epsilon_final", OpSchema.AttrType.FLOAT, "Floor of ε.", required=True),
    ],
)


def _by_token(t: int, epsilon: float, wide: str) -> str:
    """Statements of one iteration: u and the bound b as above.

    Args:
        wide: the type that is iterated in, in ONNX's text syntax.
    """
    return f"""
        e{t} = Constant <value = {wide} {{{epsilon!r}}}> ()
        x{t} = Div(u{t}, e{t})
        l{t} = ReduceLogSumExp <keepdims: int = 1> (x{t}, last)
        d{t} = Sub(l{t}, log_k)
        b{t} = Mul(d{t}, e{t})
        u{t + 1} = Min(s, b{t})"""


def _by_row(t: int, epsilon: float, wide: str) -> str:
    """The same with the bound alone: the highest u is m = min(0, b), so that nobody has to look for it."""
    return f"""
        e{t} = Constant <value = {wide} {{{epsilon!r}}}> ()
        i{t} = Constant <value = {wide} {{{1 / epsilon!r}}}> ()
        v{t} = Sub(s, m{t})
        c{t} = Min(v{t}, none_wide)
        x{t} = Mul(c{t}, i{t})
        y{t} = Exp(x{t})
        z{t} = ReduceSum <keepdims: int = 1> (y{t}, last)
        l{t} = Log(z{t})
        d{t} = Add(l{t}, less_log_k)
        w{t} = Mul(d{t}, e{t})
        b{t} = Add(w{t}, m{t})
        m{t + 1} = Min(b{t}, none_wide)"""


_ROW_START = """less_log_k = Neg(log_k)
        m0 = Identity(none_wide)"""
_FAR = 1 << 32  # tokens that no sequence has


def body(iterations: int, epsilon_start: float, epsilon_decay: float, epsilon_final: float) -> onnx.FunctionProto:
    """The function body for one schedule; numerator and denominator stay attributes of each node."""
    schedule = Schedule(iterations, epsilon_start, epsilon_decay, epsilon_final)
    return _body(schedule, "u0 = Identity(s)", _by_token)


def openvino_body(
    iterations: int, epsilon_start: float, epsilon_decay: float, epsilon_final: float
) -> onnx.FunctionProto:
    """The same for OpenVINO, which makes fewer operators of it this way and, in float32, rounds less."""
    schedule = Schedule(iterations, epsilon_start, epsilon_decay, epsilon_final)
    return _body(schedule, _ROW_START, _by_row)


def cuda_body(iterations: int, epsilon_start: float, epsilon_decay: float, epsilon_final: float) -> onnx.FunctionProto:
    """The same for onnxruntime's CUDA provider, which keeps sizes in the host's memory: no kernel reads one, so that
    nothing is copied to the device in a run and CUDA graphs can be captured."""
    schedule = Schedule(iterations, epsilon_start, epsilon_decay, epsilon_final)
    far = f"far = Constant <value = int64 {{{_FAR}}}> ()"
    return _body(schedule, f"{_ROW_START}\n{far}", _by_row, far="far")


def tensorrt_body(
    iterations: int, epsilon_start: float, epsilon_decay: float, epsilon_final: float
) -> onnx.FunctionProto:
    """The same for TensorRT, which has no float64 and would compute in float32 without a word: what is verified
    elsewhere then is what it runs."""
    schedule = Schedule(iterations, epsilon_start, epsilon_decay, epsilon_final)
    return _body(schedule, _ROW_START, _by_row, wide="float")


def _body(
    schedule: Schedule,
    start: str,
    iteration: Callable[[int, float, str], str],
    *,
    far: str = "tokens",
    wide: str = "double",
) -> onnx.FunctionProto:
    """The statements around an iteration.

    Args:
        start: statements before the first.
        far: what the positions of unused slots are moved by, behind all others; at least the number of tokens.
        wide: the type that is iterated in, in ONNX's text syntax.
    """
    epsilons = schedule.epsilons()
    iterate = "\n".join(iteration(t, epsilon, wide) for t, epsilon in enumerate(epsilons))
    width = onnx.TensorProto.DataType.Value(wide.upper())
    final = len(epsilons) - 1
    return function(
        "Route <numerator, denominator, iterations, epsilon_start, epsilon_decay, epsilon_final>"
        " (scores, mask) => (indices, gates, used)",
        f"""
        p = Constant <value_int: int = @numerator> ()
        q = Constant <value_int: int = @denominator> ()
        one = Constant <value = int64 {{1}}> ()
        zero = Constant <value = int64 {{0}}> ()
        last = Constant <value = int64[1] {{-1}}> ()
        low = Constant <value = float {{{-LIMIT!r}}}> ()
        high = Constant <value = float {{{LIMIT!r}}}> ()
        pad = Constant <value = float {{{PADDING!r}}}> ()
        none = Constant <value = float {{0.0}}> ()
        none_wide = Constant <value = {wide} {{0.0}}> ()
        p_less = Sub(p, one)

        clamped = Clip(scores, low, high)
        saturated = Where(mask, clamped, pad)
        wide = Cast <to: int = {width}> (saturated)
        highest = ReduceMax <keepdims: int = 1> (wide, last)
        s = Sub(wide, highest)
        ones = Cast <to: int = 7> (mask)
        n = ReduceSum <keepdims: int = 1> (ones, last)
        nq = Mul(n, q)
        nq_up = Add(nq, p_less)
        k = Div(nq_up, p)

        k_some = Max(k, one)
        k_wide = Cast <to: int = {width}> (k_some)
        log_k = Log(k_wide)
        {start}
        {iterate}
        over = Sub(s, b{final})
        exponent = Div(over, e{final})
        capped = Min(exponent, none_wide)
        soft_wide = Exp(capped)
        soft = Cast <to: int = 1> (soft_wide)
        selective = Less(k, n)
        choose = And(mask, selective)
        hard = Cast <to: int = 1> (mask)
        all_gates = Where(choose, soft, hard)

        tokens = Shape <start: int = 1, end: int = 2> (scores)
        tokens_q = Mul(tokens, q)
        tokens_q_up = Add(tokens_q, p_less)
        slots = Div(tokens_q_up, p)
        top, ranked = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (saturated, slots)
        first = Squeeze(slots)
        ranks = Range(zero, first, one)
        used = Less(ranks, k)
        behind = Add(ranked, {far})
        keys = Where(used, ranked, behind)
        ascending, order = TopK <axis: int = -1, largest: int = 0, sorted: int = 1> (keys, slots)
        indices = Mod(ascending, {far})
        picked = GatherElements <axis: int = 1> (all_gates, indices)
        gates = Where(used, picked, none)""",
    )
