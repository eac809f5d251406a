"""A manifest without an export behind it."""

from __future__ import annotations

import copy
from typing import Any

from edgesmith.exporters.manifest import SCHEMA

_SMALLEST: dict[str, Any] = {
    "schema": SCHEMA,
    "file": "m.onnx",
    "model": {"name": "m", "inputs": [{"name": "x", "shape": [1, 2]}], "outputs": ["y"]},
    "weights": {"origin": "the module's own", "sha256": "0" * 64, "file_sha256": None, "notes": []},
    "target": {
        "name": "onnx",
        "options": {"batch": 1, "image_input": False, "labels": None, "deployment_target": None, "device": None},
    },
    "precision": "fp32",
    "tool": {"edgesmith": "0.1.0"},
    "versions": {},
    "verification": {
        "inputs": {"count": 8, "seeds": "0 to 7", "values": ["standard normal"]},
        "judged_as": "fp32",
        "thresholds": {"fp32": {"relative_error": 1e-5, "snr_db": 100.0, "top1": "every decided input"}},
        "steps": [],
    },
    "files": [],
}


def smallest_manifest(**entries: Any) -> dict[str, Any]:
    """Return a manifest that has what every one has, with some entries of one's own."""
    return {**copy.deepcopy(_SMALLEST), **entries}
