"""Each rewrite fires, leaves the nearest wrong graph alone and says why, keeps the numbers, and is idempotent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.formula import Formula
from support.rewriting import DEAR_COPIES, apply, reasons
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture, run, with_module
from edgesmith.exporters.graph.edit import arguments, count_operators, operator_name, operators
from edgesmith.exporters.graph.match import outputs_of
from edgesmith.exporters.rewrites import fuse as fusing
from edgesmith.exporters.rewrites import order
from edgesmith.exporters.rewrites.canonicalise import pattern_form
from edgesmith.exporters.rewrites.choose_memory_form import Readout, estimate
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.order import ORDER, all_rewrites, rewrite
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.kernels import additive_attention, lmu_memory
from edgesmith.kernels.op import all_ops
from edgesmith.models.casvit import AdditiveTokenMixer, CasViT

CHEAP_COPIES = Costs(launch_us=1)


class Chain(nn.Sequential):
    """Layers one after another."""


# canonicalise


def test_canonicalise_respells_pools_splits_means_and_dropouts() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = F.dropout(x, 0.5, self.training).chunk(2, dim=-3)
            c, d = torch.split(x, 2, dim=1)
            return F.adaptive_avg_pool2d(a + c, (1, 1)) * (b + d) + x.mean((-1, -2), keepdim=True)[:, :2]

    program, reports, _ = apply(Model(), torch.randn(2, 4, 5, 6))
    counts = count_operators(program.module)
    assert counts["aten.split_with_sizes"] == 2
    assert counts["aten.mean"] == 2
    assert not {"aten.chunk", "aten.split", "aten.adaptive_avg_pool2d", "aten.dropout"} & set(counts)
    assert len(reports["canonicalise"].applied) == 5


def test_canonicalise_leaves_a_pool_to_more_than_one_place() -> None:
    program, reports, _ = apply(nn.AdaptiveAvgPool2d(2), torch.randn(1, 3, 6, 6))
    assert count_operators(program.module) == {"aten.adaptive_avg_pool2d": 1}
    assert not reports["canonicalise"].applied


@given(length=st.integers(1, 9), parts=st.integers(1, 5))
@settings(max_examples=15)
def test_canonicalise_splits_any_length_as_chunk_does(length: int, parts: int) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([chunk.sum() for chunk in x.chunk(parts, dim=1)])

    apply(Model(), torch.randn(2, length, 3))


# merge_linears


class Heads(nn.Module):
    """Two heads and how they are joined."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.join = nn.Linear(5, 7, bias=bias), nn.Linear(5, 7), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.a(x), self.b(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "join", [lambda a, b: (a + b) / 2, lambda a, b: 0.5 * (b + a), lambda a, b: a + b], ids=["mean", "half", "sum"]
)
def test_merge_linears_makes_joined_heads_one_layer(join: Callable[[Tensor, Tensor], Tensor], bias: bool) -> None:
    program, reports, _ = apply(Heads(join, bias), torch.randn(3, 5))
    assert count_operators(program.module) == {"aten.linear": 1}
    assert reports["merge_linears"].applied[0][0] in ("a + b", "b + a")


def bias_of(program: Program, name: str) -> object:
    """The argument of a node's only layer of an operator that is its bias."""
    (node,) = (node for node in operators(program.module) if operator_name(node) == name)
    return arguments(node)[2]


@pytest.mark.parametrize("different", [False, True], ids=["one-input", "two-inputs"])
def test_joined_heads_without_a_bias_have_none(different: bool) -> None:
    class Model(Heads):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * (self.a(x) + self.b(x.relu() if different else x))

    model = Model(lambda a, b: a, bias=False)
    model.b = nn.Linear(5, 7, bias=False)
    program, _, counts = apply(model, torch.randn(3, 5))
    assert counts["aten.linear"] == 1
    assert bias_of(program, "aten.linear") is None
    assert len(list(program.module.parameters())) == 1


@pytest.mark.parametrize(
    ("layers", "operator"),
    [
        ((nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), "aten.conv2d"),
        ((nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3, bias=False)), "aten.conv2d"),
        ((nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, bias=False)), "aten.conv2d"),
    ],
    ids=["norm-behind", "norm-before", "composed"],
)
def test_a_layer_without_a_bias_gets_none_where_nothing_has_to_go_in(
    layers: tuple[nn.Module, ...], operator: str
) -> None:
    for layer in layers:  # fresh statistics are 0 and 1
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    program, _, counts = apply(Chain(*layers), torch.randn(2, 4, 5, 6))
    assert counts == {operator: 1}
    assert bias_of(program, operator) is None


def test_merge_linears_leaves_heads_of_different_inputs_to_concat_linears() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x) + self.b(x.relu())) / 2

    program, reports, _ = apply(Model(), torch.randn(3, 5))
    assert count_operators(program.module) == {"aten.relu": 1, "aten.cat": 1, "aten.linear": 1}
    assert not reports["merge_linears"].applied
    assert reports["concat_linears"].applied[0][0] == "a + b"


def test_merge_linears_leaves_a_head_that_is_returned_too_and_says_so() -> None:
    class Model(Heads):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            a = self.a(x)
            return a, (a + self.b(x)) / 2

    program, reports, _ = apply(Model(lambda a, b: a), torch.randn(3, 5))
    assert count_operators(program.module)["aten.linear"] == 2
    assert "not by the sum alone" in reasons(reports["merge_linears"])


def test_merge_linears_leaves_a_scaling_by_a_tensor() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.scale = nn.Linear(5, 7), nn.Parameter(torch.rand(7))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.scale

    _, reports, _ = apply(Model(), torch.randn(3, 5))
    assert not reports["merge_linears"].applied


# fold_batchnorm


def test_fold_batchnorm_backwards_into_any_convolution(randomised: Callable[[nn.Module], nn.Module]) -> None:
    model = Chain(
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.BatchNorm2d(6, affine=False),
    )
    program, reports, _ = apply(randomised(model), torch.randn(2, 4, 7, 8))
    assert count_operators(program.module) == {"aten.conv2d": 2, "aten.relu": 1}
    assert reports["fold_batchnorm"].applied == (("1", "backwards into 0"), ("4", "backwards into 3"))


def test_fold_batchnorm_forwards_into_every_reader(randomised: Callable[[nn.Module], nn.Module]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.a, self.b = nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(4, 6, 3, bias=False)
            self.head = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x.relu())
            return self.a(y).mean((2, 3)) + self.b(y).mean((2, 3)) + self.head(y.mean((2, 3)))

    program, reports, _ = apply(randomised(Model()), torch.randn(2, 4, 5, 5))
    assert "aten.batch_norm" not in count_operators(program.module)
    assert reports["fold_batchnorm"].applied == (("norm", "forwards into a, b, head"),)


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1))])
def test_fold_batchnorm_forwards_through_a_flattened_pool(
    pool: nn.Module, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    model = Chain(nn.ReLU(), nn.BatchNorm2d(4), pool, nn.Flatten(1), nn.Dropout(), nn.Linear(4, 3))
    program, reports, _ = apply(randomised(model), torch.randn(2, 4, 5, 6))
    assert "aten.batch_norm" not in count_operators(program.module)
    assert reports["fold_batchnorm"].applied == (("1", "forwards into 5"),)


def test_fold_batchnorm_leaves_a_flattening_that_mixes_places_into_channels(
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    model = Chain(nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(1), nn.Linear(4 * 6, 3))
    program, _, _ = apply(randomised(model), torch.randn(2, 4, 2, 3))
    assert count_operators(program.module)["aten.batch_norm"] == 1


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), "1 pads with zeros"),
        (nn.Conv2d(4, 6, 3, padding=(0, 1)), "1 pads with zeros"),
        (nn.Conv2d(4, 6, 3, padding=(1, 0)), "1 pads with zeros"),
        (nn.ReLU(), "aten.relu reads it"),
        (nn.Linear(6, 2), "does not mix the normalised axis"),
        (nn.Identity(), "the output reads it"),
    ],
    ids=["padding", "padded-across", "padded-down", "activation", "last-axis", "output"],
)
def test_fold_batchnorm_leaves_readers_that_cannot_take_it_and_says_why(
    after: nn.Module, reason: str, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    program, reports, _ = apply(randomised(Chain(nn.BatchNorm2d(4), after)), torch.randn(2, 4, 6, 6))
    assert count_operators(program.module)["aten.batch_norm"] == 1
    assert reason in reasons(reports["fold_batchnorm"])
    assert "not a convolution" in reasons(reports["fold_batchnorm"])


def test_fold_batchnorm_leaves_a_convolution_that_something_else_reads(
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    program, reports, _ = apply(randomised(Model()), torch.randn(2, 4, 5, 5))
    assert count_operators(program.module)["aten.batch_norm"] == 1
    assert "is also read by" in reasons(reports["fold_batchnorm"])


def test_fold_batchnorm_copies_weights_that_two_layers_share(randomised: Callable[[nn.Module], nn.Module]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(self.conv(x)).relu())

    model = randomised(Model())
    before = model.conv.weight.clone()
    program, _, _ = apply(model, torch.randn(2, 4, 5, 5))
    assert "aten.batch_norm" not in count_operators(program.module)
    assert torch.equal(model.conv.weight, before), "the caller's own weights were written to"


@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    before=st.booleans(),
)
@settings(max_examples=60)
def test_fold_batchnorm_keeps_the_numbers_of_any_convolution(
    batch: int, groups: int, width: int, out: int, kernel: int, stride: int, padding: int, bias: bool, before: bool
) -> None:
    from numpy.random import default_rng

    channels, made = groups * width, groups * out
    conv = nn.Conv2d(channels, made, kernel, stride, padding, groups=groups, bias=bias)
    norm = nn.BatchNorm2d(channels if before else made)
    rng = default_rng(batch + 7 * channels + 31 * made)
    for tensor, low, high in (
        (norm.running_mean, -1, 1),
        (norm.running_var, 0.1, 3),
        (norm.weight, -2, 2),
        (norm.bias, -1, 1),
    ):
        tensor.data = torch.from_numpy(rng.uniform(low, high, tensor.shape).astype("float32"))
    program, reports, _ = apply(Chain(norm, conv) if before else Chain(conv, norm), torch.randn(batch, channels, 5, 6))
    folds = "aten.batch_norm" not in count_operators(program.module)
    assert folds == (not before or padding == 0)
    assert bool(reports["fold_batchnorm"].rejected) != folds


@pytest.mark.parametrize("forwards", [False, True])
@pytest.mark.parametrize("channels", [4, 5])
def test_fold_batchnorm_leaves_convolutions_without_a_batch(
    forwards: bool, channels: int, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    """[C, L] given to a convolution is one sample, and a batch norm takes its channels for the batch."""
    conv = nn.Conv1d(channels, 6, 3, padding=1)
    model = Unbatched(conv, nn.BatchNorm1d(channels if forwards else 6), forwards)
    program, reports, _ = apply(randomised(model), torch.randn(channels, channels if forwards else 6))
    assert count_operators(program.module)["aten.batch_norm"] == 1
    assert len(reports["fold_batchnorm"].rejected) == 1


class Unbatched(nn.Module):
    """An unbatched convolution with a batch norm before or after it."""

    def __init__(self, conv: nn.Module, norm: nn.Module, forwards: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.forwards = conv, norm, forwards

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x)) if self.forwards else self.norm(self.conv(x))


class Given(nn.Module):
    """A function of an input and of one parameter under a chosen name."""

    def __init__(self, name: str, value: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, next(self.parameters()))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Given("linear", torch.randn(3, 4), lambda x, w: F.linear(x, w) * 2), torch.randn(2, 4)),
        (Given("w", torch.randn(4, 4), lambda x, w: x + F.linear(w, w) * 2), torch.randn(4, 4)),
        (Given("w", torch.randn(4), lambda x, w: F.linear(x, w) * 2), torch.randn(2, 4)),
        (Given("w", torch.arange(12).reshape(3, 4), lambda x, w: F.linear(x, w) * 0.5), torch.arange(8).reshape(2, 4)),
        (Given("w", torch.ones(1), lambda x, w: x.sum().mean(dim=0) + w), torch.randn(3)),
        (Given("w", torch.ones(1), lambda x, w: x[:, :0].chunk(2, 1)[0].sum() + w), torch.randn(2, 3)),
        (Given("w", torch.ones(1), lambda x, w: x.mean([], keepdim=True) + w), torch.randn(2, 3)),
        (Given("w", torch.ones(1), lambda x, w: x.mean(dim=None, keepdim=True) + w), torch.randn(2, 3)),
    ],
    ids=[
        "taken name",
        "self product",
        "vector",
        "integers",
        "scalar mean",
        "empty chunk",
        "mean of []",
        "mean of None",
    ],
)
def test_rewrites_survive_unusual_arguments(model: nn.Module, x: Tensor) -> None:
    apply(model, x)


def test_merge_linears_keeps_a_submodule_in_whose_name_it_would_write() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) * 2 + self.bias(x).relu()

    apply(Chain(Block()), torch.randn(2, 4))


# fuse_additive_attention


def test_fuse_finds_the_mixer_and_names_its_site(randomised: Callable[[nn.Module], nn.Module]) -> None:
    program, reports, _ = apply(randomised(Chain(AdditiveTokenMixer(6))), torch.randn(2, 6, 5, 7))
    assert count_operators(program.module) == {"aten.conv2d": 1, "edgesmith.additive_attention": 1}
    assert reports["fuse_additive_attention"].applied == (("0", "26 operators -> edgesmith.additive_attention"),)


def test_fuse_finds_a_mixer_written_another_way(randomised: Callable[[nn.Module], nn.Module]) -> None:
    class Other(AdditiveTokenMixer):
        """Products the other way round, slices by split, a mean instead of a pool, in-place activations."""

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = torch.split(self.qkv(x), x.shape[1], dim=-3)
            contexts = []
            for y, gates in ((k, self.oper_k), (q, self.oper_q)):
                block = gates[0].block
                y = torch.sigmoid(block[3](F.relu_(block[1](block[0](y))))) * y
                contexts.append(y.mean((-1, -2), keepdim=True))
                contexts[-1] = torch.sigmoid(gates[1].block[1](contexts[-1])) * y
            return self.proj(v * self.dwc(contexts[0] + contexts[1]))

    model = randomised(Other(6))
    program, reports, _ = apply(model, torch.randn(1, 6, 5, 7))
    assert count_operators(program.module).get("edgesmith.additive_attention") == 1, reasons(
        reports["fuse_additive_attention"]
    )


class Near(AdditiveTokenMixer):
    """A mixer with one thing changed."""

    def __init__(self, change: str) -> None:
        super().__init__(6)
        self.change = change
        if change == "tanh":
            self.oper_k[1].block[2] = nn.Tanh()
        if change == "dilation":
            self.dwc = nn.Conv2d(6, 6, 3, padding=1, groups=6, dilation=1, padding_mode="zeros")
            self.dwc.dilation, self.dwc.padding = (2, 2), (2, 2)
        if change == "groups":
            self.proj = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        if change == "kernel":
            self.dwc = nn.Conv2d(6, 6, 5, padding=2, groups=6)
        if change == "bias":
            self.proj = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        if self.change == "order":
            q, v = v, q
        context = self.oper_q(q) + self.oper_k(k)
        if self.change == "difference":
            context = self.oper_q(q) - self.oper_k(k)
        y = self.proj(self.dwc(context) * v)
        return (y, context) if self.change == "escape" else y


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("tanh", "the reference has aten.sigmoid where the graph has aten.tanh"),
        ("dilation", "aten.conv2d's padding: the reference has [1, 1] where the graph has [2, 2]"),
        ("groups", "proj_weight must be [6, 1, 3, 3], got [6, 3, 3, 3]"),
        ("kernel", "dwc_weight must be [6, 1, 3, 3], got [6, 1, 5, 5]"),
        ("bias", "aten.conv2d's bias"),
        ("order", "the reference has"),
        ("difference", "the reference has aten.add where the graph has aten.sub"),
        ("escape", "is also read by output, outside the site"),
    ],
)
def test_fuse_leaves_a_near_miss_and_says_why(
    change: str, reason: str, randomised: Callable[[nn.Module], nn.Module]
) -> None:
    program, reports, _ = apply(randomised(Near(change)), torch.randn(1, 6, 5, 7))
    assert "edgesmith.additive_attention" not in count_operators(program.module)
    assert reason in reasons(reports["fuse_additive_attention"])


class Mixers(nn.Module):
    """Several mixers, each on an input of its own."""

    def __init__(self, widths: Iterable[int]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(AdditiveTokenMixer(width) for width in widths)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(mixer(x) for mixer, x in zip(self.mixers, inputs, strict=True))


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.slow
@given(shapes=st.lists(SHAPES, min_size=8, max_size=8), share=st.booleans())
@settings(max_examples=38)
def test_fuse_keeps_the_numbers_at_any_shape(shapes: list[tuple[int, int, int, int]], share: bool) -> None:
    """38 times 8 sites, [B, C, H, W] each."""
    torch.manual_seed(sum(map(sum, shapes)))
    costs = CHEAP_COPIES if share else DEAR_COPIES
    program, _, _ = apply(Mixers(shape[1] for shape in shapes), *map(torch.randn, shapes), costs=costs)
    assert count_operators(program.module)["edgesmith.additive_attention"] == 8


def test_fuse_finds_every_mixer_of_a_network_with_a_dynamic_batch(small: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64)
    program = capture(small, (x,), dynamic_batch=True)
    rewritten, _ = rewrite(program, CHEAP_COPIES)
    assert count_operators(rewritten.module)["edgesmith.additive_attention"] == 4
    x = torch.randn(5, 3, 64, 64)
    assert torch.allclose(run(rewritten, (x,))[0], small(x), atol=1e-5)


def spelled(graph: Graph) -> list[object]:
    """A graph's operators with their arguments by number, and the shapes of their results."""
    numbers = {node: f"node {i}" for i, node in enumerate(graph.nodes)}
    return [
        (node.target, map_arg((node.args, node.kwargs), numbers.__getitem__), val_shapes(node))
        for node in graph.nodes
        if node.op == "call_function"
    ] + [numbers[node] for node in outputs_of(graph)]


def val_shapes(node: Node) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in tree_leaves(node.meta["val"])]


@pytest.mark.parametrize("name", [name for name, op in all_ops().items() if op.is_pattern])
def test_a_reference_is_traced_as_it_is_captured(name: str) -> None:
    reference = fusing._Reference(all_ops()[name], {})
    inputs = [torch.zeros(x.shape) for x in all_ops()[name].example()]
    traced, captured = fusing._trace(reference, inputs), capture(reference, inputs).module
    assert spelled(pattern_form(traced).graph) == spelled(pattern_form(captured).graph)


TENTH = torch.tensor(0.1)


@pytest.mark.parametrize(
    "function", [lambda x: x.sin().add_(1), lambda x: x.sin() + TENTH], ids=["written in place", "a constant"]
)
def test_what_tracing_alone_spells_otherwise_is_captured(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Formula(function), torch.zeros(4)
    assert spelled(fusing._trace(model, [x]).graph) == spelled(capture(model, [x]).module.graph)


# share_gates


def test_share_gates_fires_where_a_split_is_free(small_program: Program) -> None:
    rewritten, reports = rewrite(small_program, CHEAP_COPIES)
    nodes = [n for n in rewritten.module.graph.nodes if n.target is additive_attention.OP.overload]
    assert len(nodes) == 4
    assert all(node.args[-1] is True for node in nodes)
    assert len(next(report for report in reports if report.name == "share_gates").applied) == 4


def test_share_gates_stays_away_where_copies_are_dear_and_says_what_they_cost(small_program: Program) -> None:
    rewritten, reports = rewrite(small_program, DEAR_COPIES)
    nodes = [n for n in rewritten.module.graph.nodes if n.target is additive_attention.OP.overload]
    assert all(node.args[-1] is not True for node in nodes)
    assert "us worth of data" in reasons(next(report for report in reports if report.name == "share_gates"))


def test_share_gates_keeps_the_numbers_and_is_idempotent(small: nn.Module) -> None:
    apply(small, torch.randn(1, 3, 64, 64), costs=CHEAP_COPIES)


# choose_memory_form


class MemoryAndSignal(nn.Module):
    """A Legendre memory that a 1x1 convolution reads together with the signal. ([B, T], [B, C, T]) -> [B, N, T]"""

    def __init__(self, order: int, channels: int, length: int) -> None:
        super().__init__()
        a, b = -torch.eye(order) / 2, torch.ones(order)
        self.impulse = nn.Buffer(lmu_memory.impulse_response(a, b, length))
        self.a, self.b = nn.Buffer(a), nn.Buffer(b)
        self.readout = nn.Conv1d(order + channels, 7, 1)

    def forward(self, u: Tensor, x: Tensor) -> Tensor:
        m = torch.ops.edgesmith.lmu_memory(u, self.impulse, self.a, self.b)
        y: Tensor = self.readout(torch.cat((m, x), 1))
        return y


def test_the_estimate_of_a_memorys_forms_counts_every_copy() -> None:
    batch, order, channels, length, gb_s = 2, 6, 3, 20, 4.0
    inputs = torch.randn(batch, length), torch.randn(batch, channels, length)
    program = capture(MemoryAndSignal(order, channels, length).eval(), inputs)
    nodes = {operator_name(node): node for node in operators(program.module)}
    memory, conv, cat = (nodes[name] for name in ("edgesmith.lmu_memory", "aten.conv1d", "aten.cat"))
    linear = lmu_memory.OP.linear
    assert linear is not None
    readout = Readout(conv, (cat.args[0][1],), start=0, channels_last=False, axis=1)

    def copies_us(of: Readout | None) -> dict[str, float]:
        free, dear = (estimate(memory, linear, Costs(1, copy_gb_s=rate), of) for rate in (float("inf"), gb_s))
        return {form: dear[form] - free[form] for form in free}

    # 4 bytes a number, written and read, 10^3 of them a second and GB/s take a microsecond
    state, joined = (8e-3 * batch * rows * length / gb_s for rows in (order, order + channels))
    alone = {"convolution": 0.0, "chunked": 2 * state, "recurrent": 0.0}  # put together and transposed
    assert copies_us(None) == pytest.approx(alone)
    assert copies_us(readout) == pytest.approx({**{form: us + joined for form, us in alone.items()}, "folded": 0.0})


# all together


def test_rewrites_leave_the_captured_program_and_the_model_alone(small: nn.Module) -> None:
    weights = {name: value.clone() for name, value in small.state_dict().items()}
    program = capture(small, (torch.randn(1, 3, 64, 64),))
    before = count_operators(program.module)
    rewrite(program, CHEAP_COPIES)
    assert count_operators(program.module) == before
    assert all(torch.equal(value, weights[name]) for name, value in small.state_dict().items())


def test_a_graph_is_compiled_anew_only_where_a_rewrite_changed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Double:
        name = "double"

        def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
            for node in module.graph.nodes:
                if node.target is torch.ops.aten.mul.Tensor and node.args[1] == 1 and type(node.args[1]) is int:
                    node.update_arg(1, 1.0)  # which is equal, and still another literal
            return RewriteReport(self.name)

    class Nothing(Double):
        name = "nothing"

        def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
            return RewriteReport(self.name)

    compiled: list[str] = []
    tidy = order.tidy
    monkeypatch.setattr(order, "tidy", lambda graph: compiled.append(str(graph.graph)) or tidy(graph))
    program = capture(Chain(nn.ReLU(), Times()), (torch.randn(3),))
    result, _ = rewrite(program, Costs(0), (Nothing(), Nothing(), Double(), Nothing()))
    assert len(compiled) == 2  # the copy itself, and what `Double` did
    assert "1.0" in result.module.code


class Times(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1


def test_the_order_is_a_table_of_the_rewrites_own_rules() -> None:
    rows = [f"    {rule.name:<20}{rule.rule}" for rule in ORDER]
    fused = [f"fuse_{op.name}" for op in all_ops().values() if op.is_pattern]
    first = [rule.name for rule in ORDER].index(fused[0])
    rows[first : first + len(fused)] = [f"    {'fuse':<20}the graph of a fused op's reference -> that fused op"]
    assert "\n".join(rows) in str(order.__doc__)
    of_sequences = [rule.name for rule in ORDER if rule.for_sequences]
    assert [rule.name for rule in ORDER][-len(of_sequences) :] == of_sequences  # forms come last


def test_rewrites_have_names_of_their_own() -> None:
    names = [rule.name for rule in all_rewrites()]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@given(
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    distillation=st.booleans(),
    features=st.booleans(),
    share=st.booleans(),
)
@settings(max_examples=8)
def test_rewrites_keep_a_whole_networks_numbers(
    height: int,
    width: int,
    distillation: bool,
    features: bool,
    share: bool,
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    model = CasViT((1, 1, 1, 1), (4, 8, 4, 8), 2, num_classes=5, distillation=distillation, features=features)
    costs = CHEAP_COPIES if share else DEAR_COPIES
    apply(randomised(model), torch.randn(1, 3, 32 * height, 32 * width), costs=costs)


class Gated(nn.Module):
    """A layer scale computed from a parameter, and noise that must stay random."""

    def __init__(self, noisy: bool = False) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(4, 1))
        self.noisy = noisy

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.sigmoid(self.alpha).chunk(2)
        x = (1 - first) * x + torch.softmax(second, 0)
        return x + torch.randn(2, 3) if self.noisy else x


def test_constants_are_folded_where_the_rest_of_the_graph_reads_them() -> None:
    model, x = Gated(), torch.randn(2, 3)
    program = capture(model, (x,))
    rewritten, (report,) = rewrite(program, Costs(0), (fold_constants,))
    assert [note for _, note in report.applied] == ["rsub, [2, 1], is a constant", "softmax, [2, 1], is a constant"]
    assert count_operators(rewritten.module) == {"aten.add": 1, "aten.mul": 1}
    assert torch.equal(run(rewritten, (x,))[0], model(x))
    _, (again,) = rewrite(rewritten, Costs(0), (fold_constants,))
    assert not again.applied


def test_random_numbers_are_no_constants() -> None:
    x = torch.randn(2, 3)
    noisy = torch.export.export(Gated(noisy=True).eval(), (x,)).module(check_guards=False)  # which capture refuses
    program = with_module(capture(Gated(), (x,)), noisy)
    rewritten, _ = rewrite(program, Costs(0), (fold_constants,))
    assert count_operators(rewritten.module)["aten.randn"] == 1


# fold_group_norm


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_fold_group_norm_into_the_convolutions_that_read_it(groups: int, affine: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(groups, 6, affine=affine)
            self.a, self.b = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 1)
            for parameter in self.norm.parameters():
                nn.init.normal_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.a(x) * self.b(x)

    program, reports, _ = apply(Model(), torch.randn(2, 6, 4, 5))
    applied = reports["fold_group_norm"].applied
    assert applied == ((("norm", "scale and shift into a, b"),) if affine else ())
    assert not any("norm" in name for name, _ in program.module.named_parameters())


@pytest.mark.parametrize("case", ["padded", "residual"])
def test_fold_group_norm_leaves_a_norm_whose_reader_cannot_take_it(case: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 6)
            self.conv = nn.Conv2d(6, 6, 3, padding=1) if case == "padded" else nn.Conv2d(6, 6, 1)
            for parameter in self.norm.parameters():
                nn.init.normal_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.conv(x) if case == "padded" else x + torch.relu(self.conv(x))

    _, reports, _ = apply(Model(), torch.randn(2, 6, 4, 5))
    assert not reports["fold_group_norm"].applied
