"""Models out of the wrappers around them, at the root and inside, so that every layer has the model's own name.

torch.compile(model)               the model; no compiler runs while it is captured
DataParallel, DistributedData...   the model
AveragedModel, of SWA and EMA      the averaged model
torch.jit.script(module), inside   its graph with the weights in it, which a capture follows
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from edgesmith.exporters.graph.signature import own

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers around it; the model itself where there are none."""
    while True:
        if isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, _WRAPPERS):
            model = model.module
        else:
            return model


def _frozen(child: nn.Module) -> nn.Module:
    """Return a scripted module as a graph with constants: torch.export calls its methods with one argument too many."""
    if not isinstance(child, torch.jit.ScriptModule) or child.training:
        return child
    try:
        frozen: nn.Module = torch.jit.freeze(child, optimize_numerics=False)
    except RuntimeError:  # frozen already, or it sets attributes of its own
        return child
    return frozen


@contextlib.contextmanager
def unwrapped(model: nn.Module) -> Iterator[None]:
    """Take the wrappers inside a model away, and let nothing be compiled; afterwards all is as before."""
    put_back = []
    for parent in [one for one in own(model).modules() if not isinstance(one, torch.jit.ScriptModule)]:
        for name, child in list(parent._modules.items()):
            if child is not None and (inner := _frozen(unwrap(child))) is not child:
                put_back.append((parent._modules, name, child))
                parent._modules[name] = inner
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for modules, name, child in put_back:
            modules[name] = child
