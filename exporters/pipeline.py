"""The former name of `export.py`, for scripts that import from it."""

from __future__ import annotations

from edgesmith.exporters.export import explain, export

__all__ = ["explain", "export"]
