"""The torch types that hold the values of MIL's types."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgesmith.errors import Unsupported

CARRIERS: Mapping[str, torch.dtype] = {
    "bool": torch.bool,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "int4": torch.int8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
}
"""The torch type that holds a MIL type's values: itself, or the next wider one in which torch can compute.

A uint64 beyond 2^63 - 1 has none; no MIL operator makes or takes one.
"""

BITS = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}
"""The bits of types whose carriers have more: values keep no others."""


def carrier(name: str) -> torch.dtype:
    """Return the torch type that holds the MIL type called `name`. Raises Unsupported for strings and unknown names."""
    if name not in CARRIERS:
        raise Unsupported(f"{name!r} is no numeric MIL type; there are {', '.join(CARRIERS)}")
    return CARRIERS[name]
