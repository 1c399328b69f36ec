"""What a bundle holds, costs and decides."""
