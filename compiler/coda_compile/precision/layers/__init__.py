"""Quantised torch modules that replace frozen layers."""
