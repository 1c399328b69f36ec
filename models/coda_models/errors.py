"""Errors of models, one class for each kind of mistake."""

from coda_ops.errors import CodaError


class ConfigError(CodaError):
    """A CodaConfig that describes no model."""


class UnsupportedModelError(CodaError):
    """An architecture or a feature of it that has no routed form here."""


class CheckpointError(CodaError):
    """A checkpoint that cannot be read, or is damaged."""


class BackboneError(CheckpointError):
    """A delta whose backbone is absent or is another one."""
