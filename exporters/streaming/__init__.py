"""Sequence models one step at a time."""
