"""Sentences for models that do not run or cannot be captured: the user's line, what is needed there, what to change.

Exceptions of torch speak of its own tracing, and some are pages long. Each kind that is known has words of ours, by the
exception's type and by what the line does; of others the kind is named, and `--debug` shows the rest. What the model's
own code raises is quoted: those are its author's words.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.fx import Node

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.graph.blame import distance_of, line_of_code, line_of_error, line_of_node
from edgesmith.exporters.graph.edit import operator_name
from edgesmith.exporters.graph.signature import own


class _Kind(NamedTuple):
    """A kind of failure.

    Attributes:
        said: a regular expression of what the exception says, with its type before it.
        line: one of the line that it is raised at; empty for any.
        what: is wrong there.
        do: what to change.
        code: one of the line to look for in the model's classes, where the exception names none.
    """

    said: str
    line: str
    what: str
    do: str
    code: str = ""


_BY_VALUES = r"GuardOnDataDependent|data-dependent|DataDependent"

OF_CAPTURE: tuple[_Kind, ...] = (
    _Kind(
        _BY_VALUES,
        r"^assert\b",
        "an assertion on the values of tensors, which a file cannot make",
        "take it out of forward, or assert on shapes",
    ),
    _Kind(
        _BY_VALUES,
        r"^(el)?if\b|\bif\b.*\belse\b",
        "a branch that depends on the values of tensors, and a file has one path",
        "compute both sides and choose with torch.where, or leave the branch out with"
        " `if not torch.compiler.is_exporting():` where it only checks or prints",
    ),
    _Kind(
        _BY_VALUES,
        r"^while\b",
        "a loop that ends by the values of tensors, and a file has a fixed number of iterations",
        "loop a fixed number of times, and keep what is finished with torch.where",
    ),
    _Kind(
        _BY_VALUES,
        r"\bone_hot\(",
        "a width that is the largest number of a tensor, and a file's shapes are fixed",
        "give the number of classes: one_hot(x, num_classes)",
    ),
    _Kind(
        _BY_VALUES,
        r"tolist\(|\bsorted\(|\bsum\(|\bmax\(.*tolist|\blist\(",
        "numbers of a tensor as a Python list, whose values a capture has not",
        "compute with the tensor: torch.sort, topk, cumsum",
    ),
    _Kind(
        _BY_VALUES,
        r"(?<!\.)\bfloat\(",
        "a number that is taken out of a tensor, whose values a capture has not",
        "compute with the tensor itself, or make the number an attribute of the module",
    ),
    _Kind(
        _BY_VALUES,
        "",
        "a size or an index that depends on the values of tensors, and a file's shapes are fixed",
        "take a fixed size and mask what is beyond it, or make the number an argument that is fixed",
    ),
    _Kind(
        r"Constraints violated",
        "",
        "its code fixes the batch, which is to be free, as len(x), a loop over rows, a number in its place or half of"
        " it do",
        "take it from x.shape[0] or leave it to the -1 of a reshape, or leave --dynamic-batch out",
    ),
    _Kind(
        r"\.numpy\(\)|numpy|Cannot convert.*ndarray",
        "",
        "NumPy on a tensor, of which a capture records nothing",
        "use the function of the same name in torch",
    ),
    _Kind(
        r"DynamicOutputShape|dynamic shape operator|nonzero|masked_select",
        "",
        "a result whose size depends on the values of tensors",
        "mask with torch.where, or take a fixed number with topk",
    ),
    _Kind(
        r"ScriptModule|torch\.jit|ScriptFunction",
        "",
        "a scripted module (torch.jit), of which only TorchScript's graph is there",
        "export the module that it was scripted from",
    ),
    _Kind(
        r"quantized|PackedParams",
        "",
        "a module that torch has quantised, whose weights are packed for its own kernels",
        "export the float module, and choose --precision int8",
    ),
    _Kind(
        "",
        r"pack_padded_sequence|pack_sequence|pad_packed_sequence",
        "sequences that are packed by their lengths, and a file's shapes are fixed",
        "run the layer on the padded batch, and mask what is behind each end",
    ),
    _Kind(
        r"__format__",
        "",
        "a number of a tensor in a text, whose value a capture has not",
        "leave it out with `if not torch.compiler.is_exporting():` where it only prints or logs",
    ),
    _Kind(
        r"functorch|data pointer of Tensor|Cannot access data pointer|non-standard implementation",
        r"data_ptr\(|deepcopy\(|\.apply_\(|\.map2?_\(|ctypes|storage\(",
        "the memory of a tensor, which a capture has not",
        "copy with x.clone(), and compute with functions of torch",
    ),
    _Kind(
        r"functorch|data pointer of Tensor|Cannot access data pointer",
        "",
        "a derivative by torch.func, which a capture does not follow",
        "take it with torch.autograd.grad under torch.enable_grad(), or write the derivative out",
        r"\b(jacrev|jacfwd|hessian|vjp|grad_and_value|func\.grad|grad)\(",
    ),
    _Kind(
        r"nested_tensor|NestedTensor|nested_from|nested tensor",
        "",
        "nested tensors, whose rows have lengths of their own, and a file's shapes are fixed",
        "pad the rows to one length, and take a mask as an input",
    ),
    _Kind(
        r"UncapturedHigherOrderOp|higher order op",
        "",
        "a loop or a condition of torch's own (map, scan, cond) whose body it does not take",
        "write a loop of fixed length in Python, or choose with torch.where",
    ),
    _Kind(
        r"FakeTensor|fake tensor|Fake tensor",
        "",
        "a value that leaves torch and comes back, so that a capture loses it",
        "keep to functions of torch in forward, and make constants in __init__",
    ),
)
"""Failures while torch.export runs the model on tensors without values, the first that fits."""

OF_RUNNING: tuple[_Kind, ...] = (
    _Kind(
        r"CUDA|cuda|NVIDIA|HIP",
        "",
        "needs a GPU",
        "make tensors where the input is: device=x.device, x.to(...), or a buffer",
    ),
    _Kind(
        r"all tensors to be on the same device|meta tensor|device meta|Cannot copy out of meta",
        "",
        "mixes devices",
        "move the module and its constants with .cpu(), and register constants as buffers",
    ),
    _Kind(
        r"Expected (\d)D|expected (\d)D|Expected \d-dimensional|expected input with shape|at least \d dim"
        r"|not enough values to unpack|too many values to unpack|Dimension out of range",
        "",
        "takes an input of another rank",
        "give an example with as many dimensions as the model takes, the batch first",
    ),
    _Kind(
        r"channels|shapes cannot be multiplied|size of tensor|sizes of tensors|invalid for input of size|must match",
        "",
        "takes an input of another size",
        "give an example of the size that the model takes",
    ),
    _Kind(
        r"Float and Double|Double and Float|but (found|got) Double|Double but found Float",
        "",
        "computes in float64 on an input of float32, or the other way round",
        "convert the model with .float(), and give the example in float32",
    ),
    _Kind(
        r"expected scalar type|same dtype|must have the same dtype|Expected tensor for argument .* to have",
        "",
        "takes an input of another type",
        "give the example the type that the model takes, such as 1x16:int64",
    ),
    _Kind(
        r"index out of range|out of bounds",
        "",
        "looks up an entry that it has not",
        "give whole numbers in range, such as 1x16:int64:0-999",
    ),
)
"""Failures of eager PyTorch on the example, the first that fits."""


def refuse_running(model: nn.Module, inputs: Sequence[Tensor], error: Exception) -> BadInput:
    """Return the error for a model that does not run on its example."""
    shapes = ", ".join(str(list(x.shape)) for x in inputs)
    where = line_of_error(error, below_torch=True)
    at = f" at {where}" if where else ""
    start = f"the model does not run on inputs of shape {shapes}: {type(own(model)).__name__}"
    if _is_of_author(error):
        return BadInput(f"{start} raises {_quote(error)}{at}; give an example that it takes")
    kind = _find(OF_RUNNING, error, where)
    if kind is None:
        return BadInput(f"{start} fails{at} with {_quote(error)}; run it in PyTorch first")
    said = _first_line(error)
    return BadInput(f"{start} {kind.what}{at}" + (f" ({said})" if said else "") + f"; {kind.do}")


def refuse_capture(model: nn.Module, error: Exception) -> Unsupported:
    """Return the error for a model that torch.export does not capture."""
    where = line_of_error(error, below_torch=True)
    name = type(own(model)).__name__
    kind = _find(OF_CAPTURE, error, where)
    if kind is not None and where is None and kind.code:
        where = line_of_code(own(model), kind.code)
    at = f" at {where}" if where else ""
    if kind is not None:
        return Unsupported(f"{name} cannot be captured{at}: {kind.what}; {kind.do}")
    if _is_of_author(error):
        return Unsupported(
            f"{name} cannot be captured{at}: it raises {_quote(error)} on tensors without values, though it runs in"
            " PyTorch; take what depends on values out of forward"
        )
    return Unsupported(
        f"{name} cannot be captured{at}: torch.export fails there with {type(_root(error)).__name__};"
        " write that line with functions of torch on tensors of fixed shapes; --debug shows the trace"
    )


def refuse_decomposition(nodes: Iterable[Node], error: Exception) -> Unsupported:
    """Return the error for a captured operator that torch does not trace again, as it has to for a target."""
    executing = re.search(r"While executing %(\w+)", str(error))
    node = next((one for one in nodes if executing and one.name == executing[1]), None)
    where = None if node is None else line_of_node(node)
    what = "this model" if node is None else f"{operator_name(node)} at {where or node.name}"
    return Unsupported(
        f"{what} is captured, and torch fails where it traces that again;"
        " write that line with other functions of torch; --debug shows the trace"
    )


def _find(kinds: Sequence[_Kind], error: BaseException, where: str | None) -> _Kind | None:
    """Return the first kind that an exception is of."""
    said = " ".join(f"{kind.__name__}" for kind in type(error).__mro__) + f": {error}"
    code = (where or "").partition(" (")[2]
    return next((one for one in kinds if re.search(one.said, said) and re.search(one.line, code)), None)


def _is_of_author(error: BaseException) -> bool:
    """Return whether the model's own code raises an exception by itself, so that its words are its author's."""
    frames = traceback.extract_tb(_root(error).__traceback__)
    if not frames or distance_of(frames[-1].filename) is None:
        return False
    code = frames[-1].line or ""
    return code.startswith(("raise", "assert"))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _quote(error: BaseException) -> str:
    said = _first_line(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:200] if lines else ""
