"""One self-contained HTML page about a bundle: latency, where the time goes, accuracy, routing."""
