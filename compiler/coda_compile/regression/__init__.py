"""The latency gate: did this bundle become slower than that one? First what is deterministic, then an A/B in turns."""
