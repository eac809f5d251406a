"""Capture keeps the model as it was, takes foreign code, and answers for what it cannot take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.graph.capture import capture, exported, run
from edgesmith.exporters.graph.edit import count_operators, module_path, operators


class Lines(nn.Module):
    """A module from one function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


def test_capture_leaves_training_mode_as_it_was(small: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    model[1].eval()
    capture(model, (torch.randn(1, 3, 4, 4),))
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_capture_functionalises_in_place_code() -> None:
    program = capture(Lines(lambda x: F.relu_(x * 2).add_(1)), (torch.randn(2, 3),))
    assert set(count_operators(program.module)) == {"aten.mul", "aten.relu", "aten.add"}
    x = torch.randn(2, 3)
    assert torch.equal(run(program, (x,))[0], F.relu(x * 2) + 1)


def test_capture_knows_the_module_of_every_operator(small: nn.Module) -> None:
    program = capture(small, (torch.randn(1, 3, 32, 32),))
    paths = {module_path(node) for node in operators(program.module)}
    assert {"patch_embed.0", "network.2.0.attn", "network.2.0.attn.oper_q.0.block.3", "head"} <= paths


def test_capture_takes_several_inputs_and_nests_of_outputs() -> None:
    program = capture(Lines(lambda a, b: {"sum": a + b, "pair": (a, b * 2)}), (torch.ones(2), torch.ones(2)))
    assert program.output_names == ("sum", "pair_0", "pair_1")
    assert len(program.input_names) == 2
    assert [float(y.sum()) for y in run(program, (torch.ones(2), torch.ones(2)))] == [4, 2, 4]


def test_capture_of_a_dynamic_batch_runs_at_every_batch(small: nn.Module) -> None:
    program = capture(small, (torch.randn(2, 3, 32, 32),), dynamic_batch=True)
    for batch in (1, 3):
        assert run(program, (torch.randn(batch, 3, 32, 32),))[0].shape == (batch, 10)
    assert exported(program, "onnx", is_traced_again=True).range_constraints


class _ScaleOutOfABuffer(nn.Module):
    """A grid whose scale is a tensor that forward makes a number of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, float(self.scale), 0, 0, 255)


def test_a_number_out_of_a_tensor_is_no_size_and_no_index() -> None:
    with pytest.raises(
        Unsupported, match=r": a number that is taken out of a tensor, .*; compute with the tensor itself"
    ):
        capture(_ScaleOutOfABuffer(), (torch.randn(2, 3),))


class _Gaussian(nn.Module):
    """The loss of a normal distribution, one of each form."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        loss = nn.functional.gaussian_nll_loss
        return [loss(x, t, v), loss(x, t, v[:, 0], full=True, reduction="none"), loss(x, t, v[:, :1], reduction="sum")]


def test_a_loss_that_checks_its_variances_is_captured() -> None:
    given = (torch.randn(3, 4), torch.randn(3, 4), torch.rand(3, 4))
    for got, wanted in zip(run(capture(_Gaussian(), given), given), _Gaussian()(*given), strict=True):
        torch.testing.assert_close(got, wanted)


COUNTS, SHARES = torch.tensor([1, 2, 1, 3, 1, 4]), torch.tensor([0.1, 0.9, 0.3, 0.2, 0.7, 0.4])
COVARIANCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cov": torch.cov,
    "method": lambda x: x.cov(correction=0),
    "of a vector": lambda x: torch.cov(x[0]),
    "no row left": lambda x: torch.cov(x[:, :1]),
    "counted": lambda x: torch.cov(x, fweights=COUNTS),
    "weighted": lambda x: torch.cov(x, aweights=SHARES),
    "both": lambda x: torch.cov(x, fweights=COUNTS, aweights=SHARES),
    "both, of all": lambda x: torch.cov(x, correction=0, fweights=COUNTS, aweights=SHARES),
    "corrcoef": torch.corrcoef,
    "corrcoef method": lambda x: x.corrcoef(),
    "corrcoef of a vector": lambda x: torch.corrcoef(x[0]),
}


PLACES: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "nonzero": lambda x: torch.nonzero(x[0, 0], as_tuple=True),
    "nonzero by name": lambda x: torch.nonzero(input=x[0, 0], as_tuple=True),
    "method": lambda x: x[0, 0].nonzero(as_tuple=True),
    "where": lambda x: torch.where(x[0, 0] > 0),
    "nonzero of rows": lambda x: torch.nonzero(x, as_tuple=True),
    "where of rows": lambda x: torch.where(x > 0),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_of_a_single_number_are_captured_and_traced_again(name: str) -> None:
    x = torch.tensor([[2.0, 1.0]])
    captured = capture(Lines(lambda x: PLACES[name](x)[0] + 1), (x,))
    (got,) = run(captured, (x,))
    assert got.tolist() == (PLACES[name](x)[0] + 1).tolist()
    exported(captured, "coreml")


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3), (3,)), ((1, 3), (2, 1)), ((), ()), ((), (2,))], ids=str)
def test_selection_by_a_mask_is_an_index(shapes: tuple[tuple[int, ...], ...]) -> None:
    x, y = (torch.arange(float(torch.Size(shape).numel())).reshape(shape) for shape in shapes)
    captured = capture(Select(), (x, y))
    assert count_operators(captured.module)["aten.index"] == 1
    for rows in (y, y - 1, 1 - y):
        assert torch.equal(run(captured, (x, rows))[0], torch.masked_select(x, rows > 0))


class Select(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.masked_select(y > 0) if x.dim() == y.dim() else torch.masked_select(x, mask=y > 0)


def test_what_torch_does_not_trace_again_is_refused_with_its_line() -> None:
    captured = capture(Lines(lambda x: torch.ops.aten.nonzero_numpy(x[0, 0])[0] + 1), (torch.ones(1, 2),))
    said = (
        r"aten.nonzero_numpy at .*test_capture.py:\d+ \(.*\) is captured, and torch fails where it traces that"
        " again; write that line with other functions of torch"
    )
    with pytest.raises(Unsupported, match=said):
        exported(captured, "coreml")


@pytest.mark.parametrize("name", COVARIANCES)
@pytest.mark.filterwarnings("ignore:cov")
def test_covariances_that_check_their_weights_are_captured(name: str) -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 4.0, 1.5, 0.2], [0.3, 1.0, -1.0, 2.0, 2.5, 5.0], [2.0, 3.0, 1.0, 0.0, 1.0, 7.0]])
    function = COVARIANCES[name]
    (got,) = run(capture(Lines(function), (x,)), (x * 2,))
    torch.testing.assert_close(got, function(x * 2), equal_nan=True)


def test_capture_refuses_data_dependent_code_and_names_it() -> None:
    with pytest.raises(
        Unsupported, match=r"Lines cannot be captured at .*test_capture\.py:\d+ \(.*a branch that depends on the values"
    ) as raised:
        capture(Lines(lambda x: x * 2 if x.sum() > 0 else x), (torch.ones(2),))
    assert "\n" not in str(raised.value)


def test_capture_refuses_inputs_that_the_model_refuses(small: nn.Module) -> None:
    with pytest.raises(BadInput, match=r"does not run on inputs of shape \[1, 4, 32, 32\]"):
        capture(small, (torch.randn(1, 4, 32, 32),))


def test_capture_refuses_a_model_that_returns_no_tensor() -> None:
    with pytest.raises(BadInput, match="must return a tensor or a nest of tensors"):
        capture(Lines(lambda x: "text"), (torch.ones(2),))


def test_models_that_work_in_place_on_their_input_leave_the_callers_alone() -> None:
    x = torch.tensor([-1.0, 2.0])
    program = capture(Lines(lambda x: F.relu_(x) + 1), (x,))
    assert torch.equal(x, torch.tensor([-1.0, 2.0]))
    given = torch.tensor([-3.0, 4.0])
    assert torch.equal(run(program, (given,))[0], torch.tensor([1.0, 5.0]))
    assert torch.equal(given, torch.tensor([-3.0, 4.0]))


def test_the_same_tensor_given_twice_is_two_inputs() -> None:
    x = torch.ones(2)
    program = capture(Lines(lambda x, y: x * 2 + y), (x, x))
    assert torch.equal(run(program, (torch.ones(2), torch.zeros(2)))[0], torch.full((2,), 2.0))


def test_a_model_that_writes_to_its_buffer_is_refused_and_left_as_it_was() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return x + self.count

    model = Counter()
    with pytest.raises(Unsupported, match=r"random or stateful: .* has changed the buffer count of the model"):
        capture(model, (torch.ones(1),))
    assert float(model.count) == 0


class Named(nn.Module):
    """A module with one parameter called as asked."""

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def forward(self, output: Tensor) -> Tensor:
        return output + next(self.parameters())


@pytest.mark.parametrize(
    ("model", "inputs", "sentence"),
    [
        (Named("meta", torch.ones(1)), (torch.ones(1),), "a member called 'meta'"),
        (Named("w", torch.ones(1, dtype=torch.bfloat16)), (torch.ones(1),), "computes in bfloat16"),
        (nn.LazyLinear(3), (torch.ones(1, 2),), "lazy parameters"),
        (Lines(torch.fft.fft), (torch.ones(4),), "returns complex numbers"),
    ],
    ids=["reserved", "bfloat16", "lazy", "complex"],
)
def test_models_that_no_target_takes_are_one_sentence(
    model: nn.Module, inputs: tuple[Tensor, ...], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        capture(model, inputs)


def test_a_dynamic_batch_takes_any_number_of_arguments() -> None:
    program = capture(Lines(lambda a, b, c: a + b * c), (torch.ones(2, 3),) * 3, dynamic_batch=True)
    given = [torch.randn(5, 3) for _ in range(3)]
    assert torch.equal(run(program, given)[0], given[0] + given[1] * given[2])
    with pytest.raises(BadInput, match="a batch of 2 or more"):
        capture(Lines(lambda a: a), (torch.ones(1, 3),), dynamic_batch=True)


def _branches(x: Tensor) -> Tensor:
    return x + 1 if x.shape[0] == 2 else x


FIXED_BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "len": lambda x: x.reshape(len(x), -1),
    "a loop over rows": lambda x: torch.stack([row * 2 for row in x]),
    "a loop over numbers": lambda x: torch.stack([x[i] for i in range(x.shape[0])]),
    "unbind": lambda x: torch.stack(x.unbind(0)),
    "a number in its place": lambda x: x.reshape(2, -1),
    "a branch": _branches,
    "a constant of its size": lambda x: x + torch.zeros(2, 4, 6),
    "chunks of it": lambda x: torch.cat(x.chunk(2, 0)),
    "a number of Python": lambda x: x * float(x.shape[0]),
    "half of it": lambda x: x[: x.shape[0] // 2],
    "pairs of it": lambda x: x.reshape(x.shape[0] // 2, 2, -1),
}


@pytest.mark.parametrize("name", FIXED_BATCHES)
def test_code_that_fixes_a_dynamic_batch_is_told_so(name: str) -> None:
    with pytest.raises(Unsupported, match=r"its code fixes the batch, which is to be free.*leave --dynamic-batch out"):
        capture(Lines(FIXED_BATCHES[name]), (torch.randn(2, 4, 6),), dynamic_batch=True)


@pytest.mark.parametrize("squeeze", [torch.squeeze, lambda x: x.squeeze(0), lambda x: x.squeeze((0, 2))])
def test_a_dynamic_batch_is_not_squeezed(squeeze: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Unsupported, match=r"aten\.squeeze at .*takes an axis away where its size is 1"):
        capture(Lines(squeeze), (torch.randn(2, 4, 1),), dynamic_batch=True)
    program = capture(Lines(lambda x: x.squeeze(-1)), (torch.randn(2, 4, 1),), dynamic_batch=True)
    assert run(program, [torch.randn(1, 4, 1)])[0].shape == (1, 4)


def test_a_dynamic_batch_is_one_for_all_inputs() -> None:
    with pytest.raises(BadInput, match="first axis of every input, and those of the example are 2 and 3"):
        capture(Lines(lambda a, b: a @ b.T), (torch.ones(2, 3), torch.ones(3, 3)), dynamic_batch=True)


def test_an_argument_called_output_gets_outputs_of_another_name() -> None:
    assert capture(Named("w", torch.ones(1)), (torch.ones(1),)).output_names == ("result",)


class Hooks(nn.Module):
    """Registers a hook on its layer: at the first call alone, as transformers does, or at every call."""

    def __init__(self, is_once: bool, branches: bool) -> None:
        super().__init__()
        self.layer, self.has_hook, self.is_once, self.branches = nn.Linear(2, 2), False, is_once, branches
        self.layer.register_forward_pre_hook(lambda module, args: None)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.is_once and self.has_hook):
            self.layer.register_forward_hook(lambda module, args, output: output * 2)
            if self.is_once:
                self.has_hook = True
        return x if self.branches and x.sum() > 0 else self.layer(x)


@pytest.mark.parametrize("branches", [True, False])
def test_hooks_that_a_first_call_registers_are_in_the_file_and_not_left_behind(branches: bool) -> None:
    model, x = Hooks(True, branches), torch.ones(1, 2)
    if branches:
        with pytest.raises(Unsupported):
            capture(model, (x,))
    else:
        assert torch.equal(run(capture(model, (x,)), (x,))[0], 2 * (x @ model.layer.weight.T + model.layer.bias))
    assert not model.has_hook
    assert len(model.layer._forward_hooks) == 0
    assert len(model.layer._forward_pre_hooks) == 1


def test_a_model_with_one_more_hook_at_each_call_is_refused_by_them_and_left_as_it_was() -> None:
    model = Hooks(False, False)
    with pytest.raises(Unsupported, match=r"random or stateful: .* has changed the hooks of layer"):
        capture(model, (torch.ones(1, 2),))
    assert len(model.layer._forward_hooks) == 0
