"""Which of the registry's models a test is for."""

from __future__ import annotations

from edgesmith.models import registry

FIRST = ("affnet", "casvit", "efficientvim", "lmuformer")
"""Families that have been timed on the host, and whose every size is built and linted.

Of the others tests export one small model each, in files of their own.
"""

FIRST_ZOO = [name for name, spec in registry.all_models().items() if spec.family in FIRST]
