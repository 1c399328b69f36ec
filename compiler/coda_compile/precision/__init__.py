"""Precisions: how weights and activations are quantised, one file each."""
