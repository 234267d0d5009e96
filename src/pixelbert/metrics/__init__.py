"""Metrics as pure functions over plain arrays."""
