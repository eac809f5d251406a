"""Every family of sequence and time-series mixers on every target, small, verified: one cell of the table a test.

python -m pytest tests/test_sequence_targets.py -m slow -v
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.lowering import assert_nothing_constant
from support.small_models import SEQUENCES

import edgesmith

pytestmark = pytest.mark.slow

TARGETS = (("onnx", "fp32"), ("onnx", "fp16"), ("coreml", "fp16"), ("coreai", "fp16"), ("tensorrt", "fp16"))


@pytest.mark.parametrize(("target", "precision"), TARGETS)
@pytest.mark.parametrize("family", SEQUENCES)
def test_a_small_one_is_verified(family: str, target: str, precision: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "rtx3080"} if target == "tensorrt" else {}
    torch.manual_seed(0)
    model, inputs = SEQUENCES[family]()
    artifact = edgesmith.export(
        model.eval(), target, inputs=inputs, precision=precision, name=family.replace(" ", "_"), out=tmp_path, **options
    )
    assert not artifact.manifest["verification"].get("missed")
    assert "aten.cumsum" not in artifact.manifest["operators"]["rewritten"]  # none is left whose range is unbounded
    if target == "onnx":
        assert_nothing_constant(artifact.file)
