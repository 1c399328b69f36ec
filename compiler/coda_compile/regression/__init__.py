"""The regression check: is one bundle slower than another? First deterministic facts, then an A/B test in turns."""
