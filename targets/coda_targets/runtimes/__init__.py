"""How models run on each target: sessions and providers."""
