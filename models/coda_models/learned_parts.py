"""What libraries of adapters learn inside of an encoder, in front of it and behind it: its form, as plain data.

``coda_models.build_parts`` makes the modules of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar

from transformers.activations import ACT2FN

from coda_models.errors import ConfigError
from coda_ops.errors import shown

ACTIVATIONS = (*sorted(ACT2FN), "leakyrelu")
RESIDUALS = ("before", "added", "normed")
_WIDEST = 65536  # of anything learned, of one layer's bottlenecks together
_DEEPEST = 64  # bottlenecks behind each other, layers of a head
_AnyForm = TypeVar("_AnyForm", bound="_Form")


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Plain data; a bad field raises ``ConfigError``, one sentence that names it."""

    what: ClassVar[str]  # it describes, for messages

    @classmethod
    def of(cls: type[_AnyForm], plain: Any) -> _AnyForm:
        """One from plain values, or one as it is.

        Raises:
            ConfigError: no mapping, an unknown field, or a bad value.
        """
        if isinstance(plain, cls):
            return plain
        if not isinstance(plain, Mapping):
            raise ConfigError(f"{cls.what}: {shown(plain)} is no mapping of fields")
        unknown = sorted(set(map(str, plain)) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"field {unknown[0]!r} of {cls.what} is unknown to this release of coda-compile")
        if lacking := [one.name for one in fields(cls) if one.default is MISSING and one.name not in plain]:
            raise ConfigError(f"{cls.what} lacks its field {lacking[0]!r}")
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def _check_whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} {shown(value)} of {self.what} is not a whole number from {low} to {high}")

    def _check_true_or_false(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} {shown(getattr(self, name))} of {self.what} is neither true nor false")

    def _check_one_of(self, name: str, known: Sequence[str]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in known:
            raise ConfigError(f"{name} {shown(value)} of {self.what} is unknown: use one of {', '.join(known)}")

    def _settle_list(self, name: str, kind: type["_Form"], most: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, (list, tuple)) or len(value) > most:
            raise ConfigError(f"{name} of {self.what} is no list of {most} at most")
        object.__setattr__(self, name, tuple(kind.of(one) for one in value))

    def _settle_one(self, name: str, kind: type["_Form"]) -> None:
        value = getattr(self, name)
        object.__setattr__(self, name, None if value is None else kind.of(value))


def _plain(value: Any) -> Any:
    if isinstance(value, _Form):
        return value.to_dict()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class BottleneckForm(_Form):
    """An adapter inside a layer: its sizes, and how it sits between a sublayer's output h, its input x and its norm.

    Attributes:
        width: b of d → b → d.
        activation: one of ``ACTIVATIONS``.
        parallel: it reads x and is added to h; a serial one reads what has become of h.
        joined: h + x is normed before a serial adapter reads it.
        closes: x is added and the norm applied behind it (of several adapters the last one's word counts).
        residual: what a serial adapter is added to: h as it came (``before``), h + x (``added``), or what it reads
            (``normed``).
        residual_first: it is added before the adapter's own norm, not behind it.
        norm_before, norm_after: whether it has norms of its own.
    """

    what = "a bottleneck"

    width: int
    activation: str = "relu"
    parallel: bool = False
    joined: bool = False
    closes: bool = True
    residual: str = "before"
    residual_first: bool = False
    norm_before: bool = False
    norm_after: bool = False

    def __post_init__(self) -> None:
        self._check_whole("width", 1, _WIDEST)
        self._check_one_of("activation", ACTIVATIONS)
        self._check_one_of("residual", RESIDUALS)
        self._check_true_or_false("parallel", "joined", "closes", "residual_first", "norm_before", "norm_after")


@dataclass(frozen=True, kw_only=True)
class LayerParts(_Form):
    """What one layer has learned beside its own weights.

    Attributes:
        after_attention, after_feed_forward: adapters at the end of a sublayer, the first one first.
        prefix: learned tokens, as keys and values, that every query attends to as well.
    """

    what = "a layer's parts"

    after_attention: Sequence[BottleneckForm] = ()
    after_feed_forward: Sequence[BottleneckForm] = ()
    prefix: int = 0

    def __post_init__(self) -> None:
        self._settle_list("after_attention", BottleneckForm, _DEEPEST)
        self._settle_list("after_feed_forward", BottleneckForm, _DEEPEST)
        self._check_whole("prefix", 0, _WIDEST)
        if self.width > _WIDEST:
            raise ConfigError(f"the bottlenecks of a layer have width {self.width} together, and {_WIDEST} is the most")

    @property
    def width(self) -> int:
        """Of all bottlenecks together."""
        return sum(one.width for one in (*self.after_attention, *self.after_feed_forward))


@dataclass(frozen=True, kw_only=True)
class InvertibleForm(_Form):
    """An invertible adapter of embeddings (Pfeiffer et al. 2020), by additive coupling (NICE, Dinh et al. 2015).

    Attributes:
        first, second: hidden widths of the networks that change the first and the second half.
        activation: one of ``ACTIVATIONS``.
    """

    what = "an invertible adapter"

    first: int
    second: int
    activation: str = "relu"

    def __post_init__(self) -> None:
        self._check_whole("first", 1, _WIDEST)
        self._check_whole("second", 1, _WIDEST)
        self._check_one_of("activation", ACTIVATIONS)


@dataclass(frozen=True, kw_only=True)
class HeadForm(_Form):
    """A head in the place of the backbone's own: linear layers with an activation between.

    Attributes:
        layers: how many; all but the last keep the width.
        activation: one of ``ACTIVATIONS``.
        pooler: it reads what the backbone's pooler makes of the first token, and not that token itself.
        bias: whether the last layer adds one.
        dropout: in front of each layer, in training.
    """

    what = "a head"

    layers: int = 1
    activation: str = "tanh"
    pooler: bool = False
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check_whole("layers", 1, _DEEPEST)
        self._check_one_of("activation", ACTIVATIONS)
        self._check_true_or_false("pooler", "bias")
        value = self.dropout
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ConfigError(f"dropout {shown(value)} of a head is no number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class LearnedParts(_Form):
    """All that an encoder has learned beside its own weights, adapters beside layers and routers apart.

    Attributes:
        prompt: learned tokens in front of every text, which layers take and route like others.
        offset: positions that a text begins behind, with prefixes that count as tokens before it.
        token_types: whether the model takes token types where its backbone does.
        layers: one for each layer, or none.
        invertible: an adapter of the embeddings.
        head: in the place of the backbone's own.
    """

    what = "parts"

    prompt: int = 0
    offset: int = 0
    token_types: bool = True
    layers: Sequence[LayerParts] = ()
    invertible: InvertibleForm | None = None
    head: HeadForm | None = None

    def __post_init__(self) -> None:
        self._check_whole("prompt", 0, _WIDEST)
        self._check_whole("offset", 0, _WIDEST)
        self._check_true_or_false("token_types")
        self._settle_list("layers", LayerParts, _WIDEST)
        self._settle_one("invertible", InvertibleForm)
        self._settle_one("head", HeadForm)
        if self.prompt and self.offset:
            raise ConfigError("a prompt is a part of the text, which begins at position 0: leave offset 0 beside it")


NO_PARTS = LearnedParts()
