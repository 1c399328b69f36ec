"""Proof that a compiled model computes what the trained one does."""
