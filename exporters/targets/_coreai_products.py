"""Linear layers in half precision as the convolutions that Core AI computes in their place, and better.

    linear(x [B, K])             ->  conv1x1(x as [B, K, 1, 1])
    linear(x [B, L, K])          ->  conv1x1(x as [B, K, 1, L]), its channels moved back behind
    linear(x [B, H, W, K])       ->  conv1x1(x as [B, K, H, W]), the same

The Neural Engine wants [B, C, 1, S] and 1x1 convolutions (apple/coreai-models, neural_engine_rules.md). The runtime's
own product of matrices sums in half precision: 2048 terms come out at 43 dB, and those of a convolution, which it sums
in single precision, at 67. Layers whose weights are computed stay.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.capture import Program, with_module
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, fork, operators, replace, tidy, val


def convolve_linears(program: Program) -> Program:
    """Return the program with linear layers in half precision as 1x1 convolutions; itself where there are none."""
    found = {node.name for node in operators(program.module) if _weight(program.module, node) is not None}
    if not found:
        return program
    module, kernels = fork(program.module), dict[str, Node]()
    for node in list(operators(module)):
        if node.name in found:
            replace(node, _convolution(Emitter(module, node), node, kernels))
    return with_module(program, tidy(module))


def _weight(module: GraphModule, node: Node) -> Tensor | None:
    """Return the weight of a linear layer in half precision whose input is not empty; None for other nodes."""
    if node.target is not aten.linear.default or not val(node.args[0]).numel():
        return None
    weight = constant(module, node.args[1])
    return weight if weight is not None and weight.dtype == torch.float16 else None


def _convolution(emit: Emitter, node: Node, kernels: dict[str, Node]) -> Node:
    """Emit a linear layer's convolution, with the channels of its result behind again.

    Args:
        kernels: those there are, by the name of the weight, which several layers may share.
    """
    x, read, bias = arguments(node)
    weight = _weight(emit.module, node)
    assert weight is not None
    x.meta["val"] = val(x).to(weight.dtype)  # which is that of before the program was typed
    *batch, width = val(x).shape
    spatial = batch[1:] if len(batch) == 3 else [1, math.prod(batch[1:])]
    if read.target not in kernels:
        kernels[read.target] = emit.constant(f"{read.target}_1x1", weight.detach()[:, :, None, None])
    first = batch[0] if batch else 1
    if len(batch) < 2:
        maps = emit(aten.reshape.default, x, [first, width, 1, 1])
    else:
        behind = x if len(batch) == 3 else emit(aten.reshape.default, x, [first, *spatial, width])
        maps = emit(aten.permute.default, behind, [0, 3, 1, 2])
    made = emit(aten.conv2d.default, maps, kernels[read.target], bias)
    if len(batch) >= 2:
        made = emit(aten.permute.default, made, [0, 2, 3, 1])
    return made if len(batch) == 3 else emit(aten.reshape.default, made, list(val(node).shape))
