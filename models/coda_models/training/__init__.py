"""Training routers and adapters."""
