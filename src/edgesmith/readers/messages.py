"""Protobuf messages: ONNX models and Core ML's specifications, in files of a bounded size.

A message refers to no other file here: ONNX's external data are not followed, wherever they point.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import Unreadable
from edgesmith.readers.budget import GIBIBYTE, read_bytes

if TYPE_CHECKING:
    import onnx

LARGEST = 2 * GIBIBYTE
"""Protobuf's own limit."""


def read_onnx(path: Path, *, advice: str = "export it again", whole: bool = True) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Args:
        advice: what to do about a damaged one.
        whole: whether its tensors are wanted; without them, a file may keep some in other files.

    Raises:
        Unreadable: it is none, or keeps tensors that are wanted in other files.
    """
    import onnx

    content = read_bytes(path, "ONNX file", LARGEST)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own DecodeError, which depends on its implementation
        raise Unreadable(f"{path} is damaged or no ONNX file; {advice}") from error
    for tensor in model.graph.initializer:
        if whole and tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise Unreadable(f"{path} keeps the tensor {tensor.name} in another file, which is not followed; {advice}")
    return model


def parse_message(path: Path, message: Any, what: str, *, advice: str = "export it again") -> Any:
    """Fill a protobuf message from a file and return it. Raises Unreadable where it cannot be."""
    content = read_bytes(path, what, LARGEST)
    try:
        message.ParseFromString(content)
    except Exception as error:  # as above
        raise Unreadable(f"the {what} {path} cannot be read: the file is damaged; {advice}") from error
    return message
