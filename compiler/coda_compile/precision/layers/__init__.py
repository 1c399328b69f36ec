"""Torch modules that take the places of frozen layers, and putting them there."""
