"""edgesmith: token-mixer models from their PyTorch definition to verified artifacts on phones and edge boards.

    import edgesmith
    artifact = edgesmith.export("casvit_xs", target="coreml")
    artifact = edgesmith.export(module, target="onnx", inputs=(x,))
    edgesmith.verify(artifact.path)
    edgesmith.layers(artifact.path)                          what each operator's precision costs
    edgesmith.lint(artifact.path)                            or of any .mlpackage, .aimodel or .onnx
    session = edgesmith.StreamingSession(artifact.path)      of a --streaming artifact

Importing the package imports none of the heavy ones; the first call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgesmith import telemetry
from edgesmith._version import __version__

if TYPE_CHECKING:
    from edgesmith.exporters.departures.lint import lint
    from edgesmith.exporters.export import explain, export
    from edgesmith.exporters.session import StreamingSession
    from edgesmith.exporters.verify import verify_artifact as verify
    from edgesmith.exporters.verify import verify_layers as layers

telemetry.turn_off()

__all__ = ["StreamingSession", "__version__", "explain", "export", "layers", "lint", "verify"]

_LAZY = {
    "export": ("export", "export"),
    "explain": ("export", "explain"),
    "lint": ("departures.lint", "lint"),
    "verify": ("verify", "verify_artifact"),
    "layers": ("verify", "verify_layers"),
    "StreamingSession": ("session", "StreamingSession"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgesmith' has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(f"edgesmith.exporters.{module}"), attribute)
