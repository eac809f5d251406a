"""Running an ML Program with torch on the CPU, every operator at the precision that its types declare.

Of Core ML's arithmetic the types are documented: an fp16 value has 11 bits wherever it is. So an operator is computed
from its operands in fp32, and its result is rounded once, to the nearest, to the type that the program declares for it.
fp32 operators are computed in fp32, integers exactly. The program does not say with how many bits products are summed
inside an operator, and Apple's compute units do that in ways of their own:

    accumulate="fp32"   sums in fp32, in torch's order. The default.
    accumulate="fp16"   for results that are fp16, the sums of products of conv, conv_transpose, linear, matmul, einsum,
                        scaled_dot_product_attention and the recurrent operators: the products of a sum are taken in
                        order (a convolution's by input channel, then by kernel row and column), `accumulate_block` of
                        them are summed in fp32, that is added to the partial sum so far, and this is rounded to fp16,
                        overflowing to infinity; the bias is added to the last one, and rounded. With a block of 1 every
                        multiply-accumulate is rounded. Other sums (means, norms, softmax) stay in fp32.

`device` "ane" applies what is documented of the Neural Engine to the declared types, see engine_model.py: a model of
the device, and no measurement.

`precision` "fp32" and "fp64" evaluate the same program with that type for every float, from the same weights and inputs
as rounded to the program's types: the difference to "declared" is what rounding between operators costs.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgesmith.errors import BadInput, EdgesmithError, Unsupported
from edgesmith.exporters.mil.carriers import BITS, carrier
from edgesmith.exporters.mil.engine_model import DEVICES
from edgesmith.exporters.mil.ops import Entry, StateValue, all_ops
from edgesmith.exporters.mil.program import (
    Block,
    Constant,
    Feature,
    ImageFeature,
    ListType,
    MlProgram,
    Operand,
    Operation,
    Ref,
    StateType,
    TensorType,
    TupleType,
    Type,
    Variable,
    load,
    references,
    walk,
)

PRECISIONS = ("declared", "fp32", "fp64")
ACCUMULATIONS = ("fp32", "fp16")
BLOCK = 16
"""Products that are summed in fp32 before a half-precision partial sum is rounded, unless a caller says otherwise."""

Values = dict[str, Any]
Watch = Callable[[Operation, tuple[Any, ...]], None]
Step = list[tuple[Operation, tuple[Any, ...]]]


@dataclass
class _Context:
    """The `ops.Context` of one operator."""

    operation: Operation
    evaluator: Evaluator
    values: MutableMapping[str, Any]
    watch: Watch
    generator: torch.Generator

    @property
    def accumulate(self) -> str:
        return self.evaluator.accumulate

    @property
    def accumulate_block(self) -> int:
        return self.evaluator.accumulate_block

    @property
    def precision(self) -> str:
        return self.evaluator.precision

    def dtype(self, name: str) -> torch.dtype:
        return self.evaluator.dtype(name)

    def run_block(self, block: Block, values: Sequence[Any]) -> tuple[Any, ...]:
        inner = ChainMap(dict(zip((one.name for one in block.inputs), values, strict=True)), self.values)
        for step in self.evaluator.block(block, inner, self.generator):
            for operation, outputs in step:
                self.watch(operation, outputs)
        return tuple(inner[name] for name in block.outputs)


class Evaluator:
    """One function of a program, ready to run. Weights are decoded when first used, and kept.

    Args:
        program: what `load` returned, or the path of a package.
        function: its name; the package's default function when None.
        accumulate, accumulate_block, precision: see the module's docstring.
        seed: for random operators, at the beginning of every run.
        device: see the module's docstring; None for no device in particular.

    Raises:
        BadInput: the package is damaged, has no such function, or an argument has a value that it cannot have.
        Unsupported: the function has operators that edgesmith does not evaluate; all are listed, with where the first
            of each is.
    """

    def __init__(
        self,
        program: MlProgram | str | Path,
        function: str | None = None,
        *,
        accumulate: str = "fp32",
        accumulate_block: int = BLOCK,
        precision: str = "declared",
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        self.program = program if isinstance(program, MlProgram) else load(program)
        self.function = self.program.function(function)
        self.interface = self.program.interfaces[self.function.name]
        if accumulate not in ACCUMULATIONS:
            raise BadInput(f"accumulate is {accumulate!r}; there are {', '.join(ACCUMULATIONS)}")
        if precision not in PRECISIONS:
            raise BadInput(f"precision is {precision!r}; there are {', '.join(PRECISIONS)}")
        if device is not None and (device not in DEVICES or precision != "declared"):
            raise BadInput(f"device is {device!r}; at declared precision there are {', '.join(DEVICES)}")
        if accumulate_block < 1:
            raise BadInput(f"accumulate_block is {accumulate_block}; a partial sum has one product at least")
        self.accumulate = accumulate if precision == "declared" else "fp32"
        self.accumulate_block = accumulate_block
        self.precision = precision
        self.seed = seed
        self._as_device = DEVICES[device] if device is not None else None
        self._table = all_ops()
        _refuse_unknown(self.function.block, self._table)
        self._constants: dict[int, tuple[Any, ...]] = {}
        self._operands: dict[int, Any] = {}
        self._last_uses: dict[int, list[tuple[str, ...]]] = {}

    def dtype(self, name: str) -> torch.dtype:
        """The torch type for a MIL type's name in this evaluation."""
        own = carrier(name)
        return carrier(self.precision) if own.is_floating_point and self.precision != "declared" else own

    def make_states(self) -> dict[str, Tensor]:
        """New states of zeros, as Core ML makes them, by name. `run` changes them in place."""
        found = {}
        for variable in self.function.inputs:
            if isinstance(variable.type, StateType):
                wrapped = variable.type.wrapped
                found[variable.name] = torch.zeros(_fixed(wrapped, variable.name), dtype=self.dtype(wrapped.dtype))
        return found

    def run(
        self, inputs: Mapping[str, Any], states: MutableMapping[str, Tensor] | None = None, watch: Watch | None = None
    ) -> Values:
        """Evaluate the function.

        Args:
            inputs: tensors or arrays by name; a number for a scalar. They are rounded to the declared type. An image
                is a PIL image, an array of bytes [H, W, 3] (RGB whatever the program's layout) or [H, W] (gray), or a
                tensor [1, C, H, W] of pixel values 0 to 255 in the program's own layout of channels.
            states: from `make_states`, changed in place. None: zeros, which nobody sees afterwards.
            watch: called after every operator but constants with the operator and its results, those inside of loops
                and branches in each iteration.

        Returns:
            Outputs by name: tensors of the declared types; of a classifier also the label (a string or a number) and
            the dictionary from labels to probabilities.

        Raises:
            BadInput: an input is missing, unknown, or of a wrong shape or kind; or a weight cannot be read.
            Unsupported: an operator cannot be evaluated, or its result has another shape than the program declares;
                the message names it.
        """
        values = self.bind(inputs, states)
        for step in self.steps(values):
            if watch is not None:
                for operation, outputs in step:
                    watch(operation, outputs)
        return self.outputs(values)

    def bind(self, inputs: Mapping[str, Any], states: MutableMapping[str, Tensor] | None = None) -> Values:
        """The values that `steps` starts from: inputs converted and checked, states wrapped. Raises BadInput."""
        features = {feature.name: feature for feature in self.interface.inputs}
        unknown = set(inputs) - {one.name for one in self.function.inputs if not isinstance(one.type, StateType)}
        if unknown:
            raise BadInput(f"{self._label} has no input {sorted(unknown)[0]!r}; it has {', '.join(features) or 'none'}")
        states = self.make_states() if states is None else states
        values: Values = {}
        for variable in self.function.inputs:
            if isinstance(variable.type, StateType):
                values[variable.name] = self._state(variable, states)
            elif isinstance(variable.type, TensorType):
                values[variable.name] = self._input(variable, inputs, features.get(variable.name))
            else:
                raise Unsupported(f"{self._label} takes {variable.name}, which is no tensor")
        return values

    def steps(self, values: Values) -> Iterator[Step]:
        """Evaluate operator by operator; `values` has the inputs and has the outputs afterwards.

        Each step is a list of operators with their results: one operator of the function, after the ones that its inner
        blocks have run.
        """
        generator = torch.Generator().manual_seed(self.seed)
        iterator = self.block(self.function.block, values, generator)
        while True:
            with torch.no_grad():
                step = next(iterator, None)
            if step is None:
                return
            yield step

    def outputs(self, values: Values) -> Values:
        """Return what `run` does, from the values that `steps` left."""
        return {name: values[name] for name in self.function.block.outputs}

    def arrays(self, outputs: Values) -> list[np.ndarray]:
        """The outputs of `run` as arrays, in order, floats as float32 (float64 where the evaluation is in fp64).

        A classifier's dictionary is the array [1, classes] of its probabilities, and its label is left out.
        """
        floats = np.float64 if self.precision == "fp64" else np.float32
        found = []
        for value in outputs.values():
            if isinstance(value, Mapping):
                found.append(np.array([list(value.values())], floats))
            elif isinstance(value, Tensor):
                found.append(
                    value.to(carrier("fp64")).numpy().astype(floats) if value.is_floating_point() else value.numpy()
                )
        return found

    @property
    def _label(self) -> str:
        """The function in words."""
        name = self.program.path.name
        return name if len(self.program.functions) == 1 else f"{self.function.name} of {name}"

    def _state(self, variable: Variable, states: Mapping[str, Tensor]) -> StateValue:
        assert isinstance(variable.type, StateType)
        if variable.name not in states:
            raise BadInput(
                f"{self._label} has a state {variable.name!r}, which is not among those given: make_states()"
            )
        tensor, wrapped = states[variable.name], variable.type.wrapped
        if tensor.dtype != self.dtype(wrapped.dtype) or not fits(tuple(tensor.shape), wrapped.shape):
            raise BadInput(
                f"the state {variable.name} is {tensor.dtype} {list(tensor.shape)}, wanted {wrapped.dtype}"
                f" {_words(wrapped.shape)}; take it from make_states()"
            )
        return StateValue(tensor)

    def _input(self, variable: Variable, inputs: Mapping[str, Any], feature: Feature | None) -> Tensor:
        assert isinstance(variable.type, TensorType)
        name, declared = variable.name, variable.type
        if name in inputs:
            given = inputs[name]
        elif feature is not None and feature.optional:
            given = np.full(feature.shape, feature.default)
        else:
            raise BadInput(f"{self._label} takes an input {name!r}, and there is none; give it")
        image = None if feature is None else feature.image
        value = _pixels(given, image, name) if image is not None else _tensor(given)
        if declared.shape == () and value.numel() == 1:
            value = value.reshape(())
        if not fits(tuple(value.shape), declared.shape):
            raise BadInput(
                f"{name} has the shape {list(value.shape)}, and {self._label} takes {_words(declared.shape)}"
            )
        shape = tuple(value.shape) if image is None else tuple(value.shape[-2:])
        if feature is not None and not feature.allows(shape):
            raise BadInput(f"{name} has the shape {list(shape)}, and {self._label} takes {feature.allowed}")
        own = carrier(declared.dtype)
        if value.is_floating_point() and not own.is_floating_point:
            raise BadInput(f"{name} is {value.dtype}, and {self._label} takes {declared.dtype}; round it first")
        return value.to(own).to(self.dtype(declared.dtype)).clone()

    def block(self, block: Block, values: MutableMapping[str, Any], generator: torch.Generator) -> Iterator[Step]:
        """Evaluate a block's operators one by one in `values`, and drop each value after its last use."""
        if id(block) not in self._last_uses:
            self._last_uses[id(block)] = _last_uses(block)
        for operation, dying in zip(block.operations, self._last_uses[id(block)], strict=True):
            step: Step = []
            outputs = self._operation(operation, values, generator, _recorder(step))
            values.update(zip((one.name for one in operation.outputs), outputs, strict=True))
            if operation.type != "const":
                step.append((operation, outputs))
                yield step
            for name in dying:
                values.pop(name, None)

    def _operation(
        self, operation: Operation, values: MutableMapping[str, Any], generator: torch.Generator, watch: Watch
    ) -> tuple[Any, ...]:
        """An operator's results, rounded and checked."""
        constant = operation.type == "const" or operation.type.startswith("constexpr_")
        if constant and id(operation) in self._constants:
            return self._constants[id(operation)]
        entry = self._table[operation.type]
        given = {name: self._operand(name, operand, values) for name, operand in operation.inputs.items()}
        context = (_Context(operation, self, values, watch, generator),) if entry.context else ()
        try:
            result = entry.function(*context, **given)
        except EdgesmithError:
            raise
        except Exception as error:  # torch's RuntimeError and IndexError, TypeError for an unknown input, and others
            line = (str(error).strip().splitlines() or [repr(error)])[0]
            if line == ZeroDivisionError.__name__:  # all that torch says of whole numbers
                line = "it divides whole numbers by 0, such as a size that depends on values; mask with torch.where"
            raise Unsupported(f"{operation.site} of {self._label} cannot be evaluated: {line}") from error
        whole = len(operation.outputs) == 1 and isinstance(operation.outputs[0].type, (TupleType, ListType))
        results = result if isinstance(result, tuple) and not whole else (result,)
        if len(results) != len(operation.outputs):
            raise Unsupported(
                f"{operation.site} of {self._label} has {len(operation.outputs)} outputs in the program, and"
                f" {len(results)} here"
            )
        if self._as_device is not None:
            results = self._as_device(operation, given, results)
        pairs = zip(operation.outputs, results, strict=True)
        outputs = tuple(self._rounded(value, one.type, operation) for one, value in pairs)
        if constant:
            self._constants[id(operation)] = outputs
        return outputs

    def _operand(self, parameter: str, operand: Operand, values: Mapping[str, Any]) -> Any:
        if isinstance(operand, tuple):
            return tuple(self._operand(parameter, one, values) for one in operand)
        value = values[operand.name] if isinstance(operand, Ref) else self._immediate(operand)
        if parameter in ("dtype", "output_dtype") and self.precision != "declared" and value in ("fp16", "fp32"):
            return self.precision
        return value

    def _immediate(self, constant: Constant) -> Any:
        """A constant operand, read once, as a float of this evaluation where it is one."""
        if id(constant) not in self._operands:
            self._operands[id(constant)] = self._float(constant.read())
        return self._operands[id(constant)]

    def _float(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and self.precision != "declared":
            return value.to(carrier(self.precision))
        return value

    def _rounded(self, value: Any, declared: Type, operation: Operation) -> Any:
        """A result in its declared type. Raises Unsupported where it cannot be one of it."""
        if not isinstance(value, Tensor):
            return value
        if not isinstance(declared, TensorType):
            raise Unsupported(f"{operation.site} gives a tensor where the program declares {type(declared).__name__}")
        if not fits(tuple(value.shape), declared.shape):
            raise Unsupported(
                f"{operation.site} of {self._label} gives the shape {list(value.shape)}, and the program declares"
                f" {_words(declared.shape)}: one of its parameters or operands is damaged"
            )
        wanted = self.dtype(declared.dtype)
        if value.is_floating_point() != wanted.is_floating_point or (value.dtype == torch.bool) != (
            wanted == torch.bool
        ):
            raise Unsupported(
                f"{operation.site} of {self._label} gives {value.dtype}, and the program declares {declared.dtype}"
            )
        return (value & BITS[declared.dtype] if declared.dtype in BITS else value).to(wanted)


def _recorder(step: Step) -> Watch:
    """Appends what it sees to a step."""

    def record(operation: Operation, outputs: tuple[Any, ...]) -> None:
        step.append((operation, outputs))

    return record


def fits(shape: tuple[int, ...], declared: tuple[int | None, ...] | None) -> bool:
    """Return whether a tensor may have a shape where `declared` is asked for."""
    if declared is None:
        return True
    return len(shape) == len(declared) and all(b is None or a == b for a, b in zip(shape, declared, strict=True))


def _words(shape: tuple[int | None, ...] | None) -> str:
    return "any shape" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _fixed(declared: TensorType, name: str) -> list[int]:
    if declared.shape is None or None in declared.shape:
        raise Unsupported(f"the state {name} has no fixed shape; Core ML has no such states")
    return [size for size in declared.shape if size is not None]


def _refuse_unknown(block: Block, table: Mapping[str, Entry]) -> None:
    missing = [operation for operation in walk(block) if operation.type not in table]
    if missing:
        counts = Counter(operation.type for operation in missing)
        first = {kind: next(one for one in missing if one.type == kind) for kind in counts}
        said = "; ".join(f"{kind}, {count} of them, the first is {first[kind].site}" for kind, count in counts.items())
        raise Unsupported(f"edgesmith does not evaluate these operators: {said}")


def _last_uses(block: Block) -> list[tuple[str, ...]]:
    """For each operator of a block, the names that nothing reads after it, among those that the block itself makes."""
    own = {one.name for one in block.inputs} | {out.name for op in block.operations for out in op.outputs}
    alive = set(block.outputs)
    found = []
    for operation in reversed(block.operations):
        used = _reads(operation) | {one.name for one in operation.outputs}
        found.append(tuple(sorted((used & own) - alive)))
        alive |= used
    return found[::-1]


def _reads(operation: Operation) -> set[str]:
    """The names that an operator reads, itself or in its blocks."""
    found = {name for _, name in references(operation.inputs)}
    for block in operation.blocks:
        found |= set(block.outputs)
        for inner in block.operations:
            found |= _reads(inner)
    return found


def _tensor(given: Any) -> Tensor:
    """Numbers, an array or a tensor as a tensor. Arrays are copied, as torch warns of those that cannot be written."""
    return torch.as_tensor(np.array(given) if isinstance(given, np.ndarray) else given)


def _pixels(given: Any, image: ImageFeature, name: str) -> Tensor:
    """An image as the program takes it: [1, C, H, W], pixel values in the program's layout of channels."""
    gray = image.layout.startswith("GRAYSCALE")
    if hasattr(given, "convert"):  # a PIL image
        given = np.asarray(given if image.layout == "GRAYSCALE_FLOAT16" else given.convert("L" if gray else "RGB"))
    value = _tensor(given)
    if value.dim() == 4:
        return value
    channels_last = value.dim() == 3 and value.shape[2] == 3
    if (gray and value.dim() != 2) or (not gray and not channels_last):
        wanted = "[H, W]" if gray else "[H, W, 3]"
        raise BadInput(f"{name} is an image, {image.layout}; give an image {wanted}, not {list(value.shape)}")
    if gray:
        return value[None, None]
    planes = value.permute(2, 0, 1)[None]
    return planes.flip(1) if image.layout == "BGR" else planes
