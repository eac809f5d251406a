"""Regions that torch.export keeps in sub-graphs are part of the program, or are refused by name and line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.hints_wrap import hints_wrapper
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.strict_mode import strict_mode

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import count_operators, module_path, operators
from edgesmith.exporters.graph.subgraphs import refuse_control_flow


def _region(**options: object) -> torch.autocast:
    return torch.autocast("cpu", **options)  # type: ignore[arg-type]  # options of autocast


class Region(nn.Module):
    """A function of a layer and the input, and what the function may read beside them."""

    def __init__(self, function: Callable[[Region, Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("on", torch.tensor(True))
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def _without_autocast(m: Region, x: Tensor) -> Tensor:
    with _region(enabled=False):
        return m.layer(x)


def _on_another_device(m: Region, x: Tensor) -> Tensor:
    with torch.autocast("cuda", dtype=torch.float16, enabled=False):
        return m.layer(x)


def _nested(m: Region, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        y = x + 1
        with _region(enabled=False), torch.no_grad():
            z = m.layer(y)
    return y, z


def _nothing_to_cast(m: Region, x: Tensor) -> Tensor:
    with _region(dtype=torch.bfloat16):
        y = x.relu() + 1
    return m.layer(y)


def _off_within_on(m: Region, x: Tensor) -> Tensor:
    with _region(dtype=torch.bfloat16):
        y = x + 1
        with _region(enabled=False):
            return m.layer(y)


def _in_place(m: Region, x: Tensor) -> Tensor:
    y = m.layer(x)
    with _region(enabled=False):
        z = y.add_(1).relu_()
    return y + z


def _branch(m: Region, x: Tensor) -> Tensor:
    def inner(y: Tensor) -> Tensor:
        return torch.cond(~m.on, lambda z: z * 3, lambda z: m.layer(z).relu_(), (y,))

    return torch.cond(m.on, inner, lambda y: y * 2, (x,))


def _strict(m: Region, x: Tensor) -> Tensor:
    return strict_mode(lambda y: (m.layer(y), y * 2), (x,))[0]


def _returns_its_input(m: Region, x: Tensor) -> tuple[Tensor, ...]:
    def region(y: Tensor) -> tuple[Tensor, Tensor]:
        with _region(enabled=False):
            return y, y * 2

    return region(m.layer(x))


REGIONS = (
    _without_autocast,
    _on_another_device,
    _nested,
    _nothing_to_cast,
    _off_within_on,
    _in_place,
    _branch,
    _strict,
    _returns_its_input,
)


@pytest.mark.parametrize("function", REGIONS, ids=lambda one: one.__name__.strip("_"))
def test_a_region_that_changes_nothing_is_part_of_the_program(function: Callable[..., object]) -> None:
    model, x = Region(function), torch.randn(3, 4)
    program = capture(model, (x,))
    counts = count_operators(program.module)
    assert counts.pop("aten.linear") == 1
    assert all(name.startswith("aten.") for name in counts), counts
    if function not in (_branch, _strict):  # torch keeps no module of what they trace
        assert {module_path(node) for node in operators(program.module)} >= {"layer"}
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model(x.clone()))
    for found, wanted in zip(run(program, (x,)), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_decorated_submodule_used_twice_is_there_twice() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        @torch.amp.autocast("cpu", enabled=False)
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    first, second = Filter(), Filter()
    model = nn.Sequential(first, second, first)
    program = capture(model, (torch.randn(2, 4),))
    assert count_operators(program.module) == {"aten.linear": 3}
    assert [module_path(node) for node in operators(program.module)] == ["0.layer", "1.layer", "2.layer"]
    free = capture(model, (torch.randn(2, 4),), dynamic_batch=True)
    assert run(free, (torch.randn(5, 4),))[0].shape == (5, 4)


def test_autocast_that_rounds_is_refused_with_its_line() -> None:
    def region(m: Region, x: Tensor) -> Tensor:
        with _region(dtype=torch.bfloat16):
            y = m.layer(x)
        return y.float()

    line = r"\(test_subgraphs\.py, line \d+: return self\.function\(self, x\)\)"
    with pytest.raises(Unsupported, match=rf"autocast runs aten\.linear at layer {line} in bfloat16"):
        capture(Region(region), (torch.randn(3, 4),))


def test_autocast_that_rounds_in_a_branch_or_in_place_is_refused_too() -> None:
    def branch(m: Region, x: Tensor) -> Tensor:
        def rounded(y: Tensor) -> Tensor:
            with _region(dtype=torch.bfloat16):
                z = y.add(1) @ m.layer.weight
            return z.float().relu_()

        return torch.cond(x.sum() > 0, rounded, lambda y: y * 2, (x,))

    with pytest.raises(Unsupported, match=r"autocast runs aten\.matmul"):
        capture(Region(branch), (torch.randn(3, 4),))


def test_a_condition_on_the_input_keeps_both_branches_without_regions_in_them() -> None:
    def branch(m: Region, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: _without_autocast(m, y), lambda y: y * 2, (x,))

    program = capture(Region(branch), (torch.randn(3, 4),))
    assert count_operators(program.module)["cond"] == 1
    held = [one for one in program.module.modules() if isinstance(one, torch.fx.GraphModule)]
    assert "wrap_with_autocast" not in " ".join(str(one.graph) for one in held)


def test_a_scan_stays_a_scan() -> None:
    program = capture(Region(lambda m, x: scan(lambda c, y: (c + y, c * 2), torch.zeros(4), x)[1]), (torch.ones(3, 4),))
    assert count_operators(program.module)["scan"] == 1


@pytest.mark.parametrize(("target", "takes"), [("Core ML", ()), ("ONNX", ("cond",))])
def test_control_flow_is_refused_where_a_target_has_none(target: str, takes: tuple[str, ...]) -> None:
    model = Region(lambda m, x: torch.cond(x.sum() > 0, m.layer, lambda y: y * 2, (x,)))
    program = capture(model, (torch.randn(3, 4),))
    if takes:
        refuse_control_flow(program.module, target, takes)
        return
    with pytest.raises(Unsupported, match=r"Core ML cannot express cond.*; choose by torch\.where"):
        refuse_control_flow(program.module, target, takes)


def test_what_has_no_meaning_in_a_file_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"hints_wrapper .* was captured without its constants"):
        capture(Region(lambda m, x: hints_wrapper(lambda y: m.layer(y), (x,), {}, hints={})), (torch.ones(3, 4),))
    integers = torch.ops.higher_order.out_dtype
    with pytest.raises(Unsupported, match=r"out_dtype.* is an operator that no file holds"):
        capture(
            Region(lambda m, x: integers(torch.ops.aten.mm.default, torch.int32, x.char(), x.char().t())),
            (torch.ones(3, 4),),
        )
