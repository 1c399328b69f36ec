"""Measuring latency: every contender in a process of its own, one running at a time, in turns."""
