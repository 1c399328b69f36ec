"""One self-contained HTML page about a bundle: how fast, why, how right, and what the routers do."""
