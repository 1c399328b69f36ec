"""The parts of a routed layer."""
