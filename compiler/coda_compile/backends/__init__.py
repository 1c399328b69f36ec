"""How models are compiled for each target: passes, function bodies, precisions and tolerances."""
