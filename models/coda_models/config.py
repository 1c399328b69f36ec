"""CodaConfig: a frozen, versioned dataclass, saved with every checkpoint."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any

from coda_models.errors import ConfigError
from coda_models.learned_parts import NO_PARTS, LearnedParts
from coda_models.sentence import POOLINGS, SentenceModule
from coda_ops.errors import first_line, shown

CONFIG_VERSION = 1
ATTENTIONS = ("k_to_k", "k_to_all")
_WHOLE_NUMBERS = (  # fields, the least and the largest
    ("bottleneck", 0, 65536),
    ("stand_in", 0, 65536),
    ("key_value_rank", 0, 65536),
    ("iterations", 1, 1000),
)
TASKS = ("sequence-classification", "token-classification", "feature-extraction")

_EXPONENT = re.compile("[eE]")

Reduction = int | str | Fraction


def parse_reduction(value: Reduction) -> Fraction:
    """A reduction factor r >= 1 as an exact ratio, from an int, a Fraction or text like ``"4"``, ``"7/2"``, ``"2.5"``.

    Raises:
        ConfigError: not a ratio, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str, Fraction)):
        raise ConfigError(f"reduction {shown(value)} is no ratio: give a whole number or text such as '4' or '7/2'")
    if isinstance(value, str) and _EXPONENT.search(value):  # of which a few letters can stand for gigabytes of digits
        raise ConfigError(f"reduction {shown(value)} has an exponent: give something like '4' or '7/2'")
    try:
        reduction = Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"reduction {shown(value)} is no ratio: give something like '4' or '7/2'") from None
    if reduction < 1:
        raise ConfigError(f"reduction {value} is below 1, so a layer would route k > n tokens: use 1 (dense) or more")
    if max(reduction.numerator, reduction.denominator) > 10**6:
        raise ConfigError(f"reduction {value} needs integers above a million: round it to a simpler ratio")
    return reduction


@dataclass(frozen=True)
class CodaConfig:
    """Routing, adapters and provenance of one model (CODA.md in the design notes; Lei et al. 2023).

    Attributes:
        reduction: r, one for the model or a sequence with one for each layer; k = ceil(n / r) tokens are routed.
        attention: ``k_to_k``: routed tokens attend to each other; ``k_to_all``: they attend to every valid token.
        bottleneck: width b of the adapters; 0 leaves adapters out (a plain fine-tuned encoder).
        stand_in: rank q of the stand-ins, which give the layers that route the form y = (1 - g) · (x + stand_in(x)) +
            g · layer(x); 0 for the paper's, y = x + adapter(x) + g · (layer(x) - x).
        key_value_rank: of the keys and values of tokens that are not routed, in ``k_to_all``; 0 for exact ones.
        routed_layers: indices of the layers that route; ``None`` for all. The others are dense with an adapter.
        iterations, epsilon_start, epsilon_decay, epsilon_final: the soft top-k schedule.
        task: one of ``sequence-classification``, ``token-classification``, ``feature-extraction``.
        pooling: what stands for the whole text, one of ``POOLINGS``; by default the mean for feature extraction and the
            first token for sequence classification, as transformers' heads take it. Another one goes to the same head
            in the first token's place. Feature extraction takes several, one behind the other.
        modules: what follows pooling in feature extraction.
        parts: that libraries of adapters have learned inside of the encoder, in front of it and behind it.
        backbone: hub name (or any name that says where it came from) of the pretrained encoder.
        backbone_sha256: digest of the encoder's tensors as they were converted; filled in by ``convert``.
        version: of this format.

    Raises:
        ConfigError: one sentence that names the field.
    """

    reduction: Reduction | Sequence[Reduction] = Fraction(4)
    attention: str = "k_to_k"
    bottleneck: int = 64
    stand_in: int = 0
    key_value_rank: int = 0
    routed_layers: Sequence[int] | None = None
    iterations: int = 20
    epsilon_start: float = 4.0
    epsilon_decay: float = 0.7
    epsilon_final: float = 0.03
    task: str = "sequence-classification"
    pooling: str | Sequence[str] | None = None
    modules: Sequence[SentenceModule] = ()
    parts: LearnedParts = NO_PARTS
    backbone: str = ""
    backbone_sha256: str = ""
    version: int = CONFIG_VERSION

    def __post_init__(self) -> None:
        if self.version != CONFIG_VERSION:
            raise ConfigError(
                f"configuration version {self.version!r} is not {CONFIG_VERSION}: "
                "this release cannot read it, use the coda-compile release that wrote it"
            )
        if self.pooling is None:
            object.__setattr__(self, "pooling", "mean" if self.task == "feature-extraction" else "first")
        for name, known in (("attention", ATTENTIONS), ("task", TASKS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(known)}")
        self._check_embedding()
        self._check_parts()
        for name, low, high in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} {shown(value)} is not a whole number from {low} to {high}")
        if self.key_value_rank and self.attention != "k_to_all":
            raise ConfigError(f"key_value_rank is for attention 'k_to_all', and this is {self.attention!r}: leave it 0")
        for name, most in (("epsilon_start", 1e6), ("epsilon_decay", 1.0), ("epsilon_final", 1e6)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-6 <= value <= most:
                raise ConfigError(f"{name} {shown(value)} is outside 1e-06 … {most:g}")
        for name in ("backbone", "backbone_sha256"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} {getattr(self, name)!r} is not text")
        single = not isinstance(self.reduction, Sequence) or isinstance(self.reduction, (str, bytes))
        values = [self.reduction] if single else list(self.reduction)  # type: ignore[arg-type]  # single says so
        parsed = tuple(parse_reduction(value) for value in values)  # type: ignore[arg-type]
        object.__setattr__(self, "reduction", parsed[0] if single else parsed)
        if self.routed_layers is not None:
            if not isinstance(self.routed_layers, Sequence):
                raise ConfigError(f"routed_layers {self.routed_layers!r} is no list of layer indices")
            layers = tuple(self.routed_layers)
            if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in layers):
                raise ConfigError(f"routed_layers {layers} must be layer indices from 0 on")
            object.__setattr__(self, "routed_layers", tuple(sorted(set(layers))))

    def _check_embedding(self) -> None:
        """Settle pooling, as text where it is one, and what follows it."""
        single = self.pooling is None or isinstance(self.pooling, str)
        poolings = (self.pooling,) if single else self.pooling
        if not isinstance(poolings, (list, tuple)) or not poolings:
            raise ConfigError(f"pooling {self.pooling!r} is neither a name nor a list of some")
        if unknown := [one for one in poolings if one not in POOLINGS]:
            raise ConfigError(f"pooling {unknown[0]!r} is unknown: use one of {', '.join(POOLINGS)}")
        object.__setattr__(self, "pooling", poolings[0] if len(poolings) == 1 else tuple(poolings))
        if not isinstance(self.modules, (list, tuple)):
            raise ConfigError(f"modules {self.modules!r} is no list of what follows pooling")
        modules = tuple(SentenceModule(**one) if isinstance(one, dict) else one for one in self.modules)
        if not all(isinstance(one, SentenceModule) for one in modules):
            raise ConfigError(f"modules {self.modules!r} is no list of what follows pooling")
        if any(one.kind == "Truncate" for one in modules[:-1]):
            raise ConfigError("a Truncate is the last of the modules: what lies behind it would see a part")
        object.__setattr__(self, "modules", modules)
        if self.task == "token-classification" and self.pooling != "first":
            raise ConfigError(
                f"pooling {self.pooling!r} leaves no tokens to classify: token-classification takes each by itself"
            )
        if self.task != "feature-extraction" and (len(poolings) > 1 or modules):
            what = "several poolings" if len(poolings) > 1 else f"a {modules[0].kind}"
            raise ConfigError(f"{self.task} has no place for {what} between the encoder and its head")

    def _check_parts(self) -> None:
        object.__setattr__(self, "parts", LearnedParts.of(self.parts))
        head = self.parts.head
        if head is not None and not self.task.endswith("classification"):
            raise ConfigError(f"{self.task} has no place for a head: leave the head of parts out")
        if head is not None and head.pooler and (self.task, self.pooling) != ("sequence-classification", "first"):
            raise ConfigError("the pooler of a head reads the first token of a text: it is for sequence-classification")

    @property
    def backbone_task(self) -> str:
        """What the backbone is loaded for: without a head of its own where parts bring one."""
        return self.task if self.parts.head is None else "feature-extraction"

    @property
    def poolings(self) -> tuple[str, ...]:
        """Pooling as several: an embedding is one behind the other."""
        assert self.pooling is not None  # settled when it was made
        return (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)

    @property
    def routes(self) -> bool:
        """Whether the model has routers: something stands for the layer beside the tokens that skip it."""
        return bool(self.bottleneck or self.stand_in)

    def layer_reductions(self, layers: int) -> list[Fraction]:
        """r of each of ``layers`` layers, 1 where a layer does not route. Without adapters and stand-ins none
        does.

        Raises:
            ConfigError: the configuration speaks of more or fewer layers.
        """
        if isinstance(self.reduction, tuple):
            reductions = list(self.reduction)
            if len(reductions) != layers:
                raise ConfigError(f"reduction lists {len(reductions)} layers but the model has {layers}")
        else:
            reductions = [parse_reduction(self.reduction)] * layers  # type: ignore[arg-type]
        routed = range(layers) if self.routed_layers is None else self.routed_layers
        beyond = [i for i in routed if i >= layers]
        if beyond:
            raise ConfigError(f"routed_layers names layer {beyond[0]} but the model's last layer is {layers - 1}")
        return [r if i in routed and self.routes else Fraction(1) for i, r in enumerate(reductions)]

    def with_reduction(self, reduction: Reduction | Sequence[Reduction]) -> "CodaConfig":
        """The same model at another r."""
        return replace(self, reduction=reduction)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ratios as text."""
        plain = asdict(self)
        r = self.reduction
        plain["reduction"] = [str(x) for x in r] if isinstance(r, tuple) else str(r)
        plain["pooling"] = self.pooling if isinstance(self.pooling, str) else list(self.poolings)
        plain["modules"] = [asdict(module) for module in self.modules]
        plain["parts"] = self.parts.to_dict()
        if self.parts == NO_PARTS:  # as most models are, and earlier checkpoints
            del plain["parts"]
        plain["routed_layers"] = None if self.routed_layers is None else list(self.routed_layers)
        return plain

    @classmethod
    def from_dict(cls, plain: Any) -> "CodaConfig":
        """The inverse of ``to_dict``; unknown fields are refused.

        Raises:
            ConfigError: not a mapping, an unknown field, or a bad value.
        """
        if not isinstance(plain, dict):
            raise ConfigError(f"a configuration is a mapping of fields, not {type(plain).__name__}")
        unknown = sorted(set(map(str, plain)) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"configuration field {unknown[0]!r} is unknown to this release of coda-compile")
        try:
            return cls(**plain)
        except TypeError as error:
            raise ConfigError(f"a configuration field has the wrong type: {error}") from None
        except ValueError as error:  # a number of more digits than Python writes
            raise ConfigError(f"a configuration field cannot be read: {first_line(error)}") from None
