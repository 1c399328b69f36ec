"""What a model takes: each architecture declares its inputs once; who checks, completes or makes arrays asks here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coda_targets.errors import InputError

Arrays = dict[str, NDArray[Any]]
BATCH = "batch"
_KINDS = {"ids": "iu", "values": "f", "mask": "iub", "types": "iub"}  # numpy's, of what may be given for each role
_REQUIRED = ("ids", "values")
_LONGEST_AXIS = 1 << 31
_UNITS = {"sequence": "tokens"}  # of what an axis counts, where its name is another


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: of the graph's input, and of the argument of ``CodaModel.forward``.
        dtype: of the graph's input, by numpy's name.
        axes: a name for each dynamic axis, ``batch`` first of all, and a size for each fixed one.
        role: ``ids``, indices into a table, and ``values``, floating-point numbers, are what a model reads and have to
            be given. ``mask`` is nonzero where they are valid, everywhere by default; ``types`` says to which segment
            each id belongs, to the first by default.
        size: rows of the table that it is looked up in; 0 where there is none.
        padding: what stands where nothing is valid.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]
    role: str
    size: int = 0
    padding: int | float = 0

    def __post_init__(self) -> None:
        if self.role not in _KINDS:
            raise ValueError(f"role {self.role!r} is unknown: use one of {', '.join(_KINDS)}")
        if np.dtype(self.dtype).kind != ("f" if self.role == "values" else "i"):
            raise ValueError(f"{self.name} holds {self.role}, which {self.dtype} cannot")
        if self.axes[:1] != (BATCH,):
            raise ValueError(f"{self.name} has axes {self.axes}, of which the first has to be {BATCH!r}")
        if not all(1 <= axis <= _LONGEST_AXIS for axis in self.axes if isinstance(axis, int)):
            raise ValueError(f"{self.name} has axes {self.axes}, of which a fixed one has no possible size")
        if self.size < (self.role in ("ids", "types")):
            raise ValueError(f"{self.name} is looked up in a table of {self.size} rows")

    @property
    def required(self) -> bool:
        """Whether nothing stands in where it is left out."""
        return self.role in _REQUIRED

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of an array whose dynamic axes have these sizes."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    def default(self, shape: Sequence[int]) -> NDArray[Any]:
        """What stands in for a mask or types that are left out."""
        return np.full(shape, self.role == "mask", self.dtype)


@dataclass(frozen=True)
class Signature:
    """The inputs of a model.

    Attributes:
        modality: what they hold, which names the codec of ``coda_targets.modalities`` that makes them.
        inputs: in the graph's order.
        max_length: the longest that the model takes, in tokens, frames or whatever ``unit`` says.

    Raises:
        ValueError: inputs that nothing could be made for.
    """

    modality: str
    inputs: tuple[Input, ...]
    max_length: int

    def __post_init__(self) -> None:
        if not any(one.required for one in self.inputs):
            raise ValueError("no input holds ids or values, so that there is nothing to read")
        if len(set(self.names)) < len(self.inputs):
            raise ValueError(f"two inputs have one name: {', '.join(self.names)}")
        dynamic = {axis for one in self.inputs for axis in one.axes if isinstance(axis, str)}
        if len(dynamic) != 2 or dynamic != {axis for axis in self.lead.axes if isinstance(axis, str)}:
            raise ValueError(
                f"inputs have the dynamic axes {', '.join(sorted(dynamic))}: {BATCH} and a length are known"
            )
        if self.max_length < 1:
            raise ValueError(f"the longest input is {self.max_length}, which leaves none")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs, in order."""
        return tuple(one.name for one in self.inputs)

    @property
    def lead(self) -> Input:
        """The input whose shape says how much there is."""
        return next(one for one in self.inputs if one.required)

    @property
    def length_axis(self) -> str:
        """Name of the axis that is as long as an input is."""
        return next(axis for axis in self.lead.axes if isinstance(axis, str) and axis != BATCH)

    @property
    def unit(self) -> str:
        """What lengths count, for people."""
        return _UNITS.get(self.length_axis, self.length_axis)

    def role(self, role: str) -> Input | None:
        """The first input of a role, where there is one."""
        return next((one for one in self.inputs if one.role == role), None)

    def select(self, names: Iterable[str]) -> "Signature":
        """With the inputs of these names alone, in their order."""
        return replace(self, inputs=tuple(self.inputs[self.names.index(name)] for name in names))

    def without(self, role: str) -> "Signature":
        """Without the inputs of a role."""
        return self.select(one.name for one in self.inputs if one.role != role)

    def shortened(self, max_length: int) -> "Signature":
        """With a longest input of at most so much."""
        return replace(self, max_length=min(self.max_length, max_length))

    def common(self, other: "Signature") -> "Signature":
        """Of two models with the same inputs, what both can run."""
        sizes = {one.name: one.size for one in other.inputs}
        inputs = tuple(replace(one, size=min(one.size, sizes[one.name])) for one in self.inputs)
        return replace(self, inputs=inputs, max_length=min(self.max_length, other.max_length))

    def shape(self, arrays: Mapping[str, Any]) -> tuple[int, int]:
        """Batch and length of arrays, or tensors, by name."""
        sizes = dict(zip(self.lead.axes, arrays[self.lead.name].shape, strict=True))
        return sizes[BATCH], sizes[self.length_axis]

    def mask(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Where arrays by name are valid. [batch, length]"""
        given = self.role("mask")
        if given is None or given.name not in arrays:
            return np.ones(self.shape(arrays), np.bool_)
        return np.asarray(arrays[given.name] != 0)

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse what no input is called, and what lacks one that has to be given.

        Raises:
            InputError: the first such name.
        """
        given = set(names)
        takes = f"this model takes {', '.join(self.names)}"
        if unknown := sorted(given - set(self.names)):
            raise InputError(f"input {unknown[0]!r} is unknown: {takes}")
        if missing := [one.name for one in self.inputs if one.required and one.name not in given]:
            raise InputError(f"input {missing[0]!r} is missing: {takes}")

    def prepare(self, given: Mapping[str, Any]) -> Arrays:
        """Check what is given, fill in what may be left out, and give all of it the model's types.

        Args:
            given: arrays by name, or what makes some.

        Raises:
            InputError: an unknown or missing name, a wrong type or shape, more than ``max_length``, ids of no table.
        """
        self.check_names(given)
        arrays = {name: _array(name, value) for name, value in given.items()}
        lead = self.lead
        first = arrays[lead.name]
        _check_lead(lead, first)
        sizes = {axis: size for axis, size in zip(lead.axes, first.shape, strict=True) if isinstance(axis, str)}
        if (length := sizes[self.length_axis]) > self.max_length:
            raise InputError(
                f"{lead.name} has {length} {self.unit} but this model takes at most {self.max_length}: truncate"
            )
        for one in self.inputs:
            array = arrays.setdefault(one.name, one.default(one.shape(sizes)))
            if array.dtype.kind not in _KINDS[one.role]:
                raise InputError(f"{one.name} must hold {_held(one)}, not {array.dtype}")
            if array.shape != one.shape(sizes):
                raise InputError(f"{one.name} has shape {list(array.shape)} but {lead.name} has {list(first.shape)}")
            # Runtimes count negative ids from the end, and some make up what no table holds.
            if one.size and not ((array >= 0) & (array < one.size)).all():
                raise InputError(
                    f"{one.name} holds ids that this model does not know: it has {one.size} of them, from 0 on"
                )
        return {one.name: np.ascontiguousarray(arrays[one.name], dtype=one.dtype) for one in self.inputs}

    def random(
        self, batch: int, length: int, *, ragged: bool = False, padded_left: bool = False, seed: int = 0
    ) -> Arrays:
        """Random arrays that the model takes, the same each time.

        Args:
            ragged: rows end in padding, but for the first, and the last is valid at one place alone; of models without
                a mask all are whole.
            padded_left: ragged rows begin with their padding, so that the first place, which many models read, is
                masked.
        """
        random = np.random.default_rng([seed, batch, length])
        sizes = {BATCH: batch, self.length_axis: length}
        drawn = {one.name: _draw(one, one.shape(sizes), random) for one in self.inputs if one.required}
        lengths = np.full(batch, length)
        if ragged and self.role("mask") is not None:
            lengths = random.integers(1, length + 1, batch)
            lengths[0], lengths[-1] = length, 1
        mask = np.arange(length) < lengths[:, None]
        mask = mask[:, ::-1] if padded_left else mask
        made = {}
        for one in self.inputs:
            if one.role == "types":
                drawn[one.name] = _segments(one.size, batch, length, seed)
            spread = mask.reshape([sizes[axis] if isinstance(axis, str) else 1 for axis in one.axes])
            array = spread if one.role == "mask" else np.where(spread, drawn[one.name], one.padding)
            made[one.name] = array.astype(one.dtype)
        return made


def _held(one: Input) -> str:
    return "floating-point numbers" if one.role == "values" else "integers"


def _check_lead(one: Input, array: NDArray[Any]) -> None:
    fits = array.ndim == len(one.axes) and all(
        size == axis if isinstance(axis, int) else size for axis, size in zip(one.axes, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in _KINDS[one.role]:
        wanted = f"{_held(one)} of shape [{', '.join(map(str, one.axes))}]"
        raise InputError(f"{one.name} must be {wanted}, not {array.dtype} {list(array.shape)}")


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{name} has rows of different lengths: pad them and mask the padding") from None


def _draw(one: Input, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """Ids of the table but for that of padding, or normal values."""
    if one.role == "values":
        return random.standard_normal(shape)
    ids = random.integers(0, one.size, shape)
    return np.where(ids == one.padding, (one.padding + 1) % one.size, ids)


def _segments(types: int, batch: int, length: int, seed: int) -> NDArray[np.int64]:
    """[batch, length]: every second row in two segments, as tokenizers write pairs; the others in any order."""
    random = np.random.default_rng([seed, batch, length, types])
    any_order = random.integers(0, types, (batch, length))
    begin = random.integers(0, length + 1, (batch, 1))  # of the second segment
    segments = np.minimum(np.arange(length) >= begin, types - 1)
    return np.where(np.arange(batch)[:, None] % 2, segments, any_order).astype(np.int64)
