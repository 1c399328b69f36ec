"""Packages that are installed here."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str:
    """Of a package, as pip names it; empty where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
