"""Errors of targets and bundles."""

from coda_ops.errors import CodaError


class TargetError(CodaError):
    """A target that is unknown, unfinished, or whose runtime is not installed."""


class BundleError(CodaError):
    """A folder that is no bundle, or a bundle that is damaged."""


class InputError(CodaError):
    """Inputs that a bundle cannot run."""
