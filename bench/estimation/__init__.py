"""Latencies that nobody measured here: rooflines fitted on published ones."""
