"""Captured graphs: capturing, editing, matching and interpreting them."""
