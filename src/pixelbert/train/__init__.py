"""Training: the typed recipe, optimisers and schedules, checkpoints, the loop."""
