"""Choosing reductions and precision by measuring."""
