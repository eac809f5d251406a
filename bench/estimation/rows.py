"""Published latencies: data/published.csv, one row a figure with its source, and which of them can be fitted on.

Nothing in it was measured here. A row is used where its model can be built (data/models.toml), its input is stated, and
nothing says that the figure is of another kind: `why_not` is the reason where it is not used.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from edgesmith.readers.documents import read_toml

DATA = Path(__file__).parent / "data"

FORMATS: Mapping[str, str] = {"iphone": "coreml", "snapdragon": "onnx", "jetson": "onnx", "raspberry": "onnx"}
"""The target of the devices of a fit."""

FELL_BACK = "other figures of its model or paper say that part of it fell back to the CPU"


@dataclass(frozen=True)
class Row:
    """One published latency.

    Attributes:
        fit: the rows that it is fitted with, see FORMATS.
        model, device, runtime, precision, source, notes: as published.
        profile: our name of the device; "" where there is none.
        latency_ms: of one inference, batch 1.
        family: of the model; "" where it is not known.
        model_of_timm: what timm calls it, or torchvision, after its own name; "" where it is not known.
        size: height and width of the input, pixels; 0 where it is not stated.
        backbone: up to the last feature map only.
        why_not: why it is not fitted on; "" where it is.
    """

    fit: str
    model: str
    device: str
    profile: str
    runtime: str
    precision: str
    latency_ms: float
    source: str
    notes: str
    family: str
    model_of_timm: str
    size: int
    backbone: bool
    why_not: str


@cache
def read_rows() -> tuple[Row, ...]:
    """Every published row, those that are not used among them."""
    known = _models()
    rows = []
    with (DATA / "published.csv").open(encoding="utf-8", newline="") as file:
        for given in csv.DictReader(file):
            plain = given["model"].replace(" (backbone)", "").replace(" r224", "").replace(" r256", "").casefold()
            family, model = known.get(plain, ("", ""))
            row = Row(
                given["fit"],
                given["model"],
                given["device"],
                _PROFILES.get(given["device"], ""),
                given["runtime"],
                given["precision"],
                float(given["latency_ms"]),
                given["source"],
                given["notes"],
                family,
                model,
                int(given["input"]) if given["input"].isdigit() else 0,
                "(backbone)" in given["model"],
                "",
            )
            rows.append(replace(row, why_not=_why_not(row)))
    return tuple(rows)


def _why_not(row: Row) -> str:
    """Return the reason for which a row is not fitted on."""
    if not row.model_of_timm:
        return "its model cannot be built here"
    if not row.size:
        return "its input is not stated"
    if not row.profile:
        return "its device has no profile"
    if "fallback" in row.notes:
        return FELL_BACK
    if row.precision.startswith(("palettized", "sparse", "w8", "fp32")) and row.fit != "raspberry":
        return "compressed weights or another precision"
    if "TensorRT 3" in row.runtime:
        return "TensorRT 3: depthwise convolutions were not supported as such"
    if "assumed" in row.notes:
        return "its input is a guess"
    return ""


def _models() -> dict[str, tuple[str, str]]:
    """Family and name in timm or torchvision, by published name."""
    families = read_toml(DATA / "models.toml", "table of models")
    return {name.casefold(): (family, model) for family, names in families.items() for name, model in names.items()}


_PROFILES = {
    "iPhone 12": "iphone12",
    "iPhone 12 Pro": "iphone12pro",
    "iPhone 12 Pro Max": "iphone12pro",
    "iPhone 13": "iphone13",
    "iPhone 14": "iphone14",
    "iPhone 14 Pro": "iphone14pro",
    "iPhone 15 Pro": "iphone15pro",
    "iPhone 17 Pro": "iphone17pro",
    "Galaxy S23": "galaxy-s23",
    "QCS8550 (Proxy)": "galaxy-s23",
    "Galaxy S24": "galaxy-s24",
    "Galaxy S25": "galaxy-s25",
    "Jetson Nano": "jetson-nano",
    "Jetson TX2": "jetson-tx2",
    "Jetson AGX Xavier": "jetson-agx-xavier",
    "Jetson Xavier NX": "jetson-xavier-nx",
    "Jetson Orin Nano": "jetson-orin-nano",
    "Jetson Orin NX 16GB": "jetson-orin-nx",
    "Jetson AGX Orin": "jetson-agx-orin",
    "Raspberry Pi 4": "rpi4",
    "Raspberry Pi 5": "rpi5",
}


def file_of(target: str) -> Path:
    """Return the file of the counts for a target."""
    return DATA / f"features-{target}.json"


def key(row: Row) -> str:
    """A model as features know it: its name in timm or torchvision, and what it reads."""
    return f"{row.model_of_timm}@{row.size}{' backbone' if row.backbone else ''}"
