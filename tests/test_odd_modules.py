"""Modules as people bring them: each is captured and means what it does in PyTorch, or gets a sentence.

The golden has a line for each: what it became, or what is said. A sentence names the user's line and the way out, is
one line, and has no words of a compiler in it.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd import forms
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.graph.capture import capture, run, run_eager
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.graph.signature import bind
from edgesmith.exporters.graph.unwrap import unwrap

X = torch.tensor([[0.5, -1.0, 2.0, 0.25]])
SQUARE = X.expand(4, 4).contiguous() * torch.arange(1.0, 5.0)[:, None]
OWN_INPUTS: dict[str, tuple[Any, ...]] = {
    "WrongRank": (SQUARE,),
    "Unpacks": (torch.ones(1, 3, 4),),
    "LengthFromValues": (X, torch.tensor([3])),
    "TakesSparse": (torch.eye(4).to_sparse(),),
    "MakesSparse": (SQUARE,),
    "PassesThroughSparse": (SQUARE,),
    "SoftmaxOfSparse": (SQUARE,),
    "GathersOutOfRange": (torch.tensor([[5]]),),
    "AnyNumber": (X, X + 1),
    "PacksSequences": (SQUARE[None], torch.tensor([3])),
    "DecodesCausally": (SQUARE,),
    "TakesAnyMask": (SQUARE, torch.full((4, 4), -torch.inf).triu(1)),
    "RenormsRows": (torch.tensor([[0, 2]]),),
    "SharesShortRows": (torch.tensor([[0, 2]]),),
    "NamesNoClasses": (torch.tensor([[0, 2]]),),
    "TakesResult": (forms.Result(X, [X + 1]),),
}
KEYWORDS: dict[str, dict[str, Any]] = {
    "KeywordOnly": {"scale": 2.0, "mask": X > 0},
    "ReturnsResult": {"return_dict": True},
}
WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "a compiled module": lambda: torch.compile(forms.DropPath()),
    "data-parallel": lambda: nn.DataParallel(forms.DropPath()),
    "wrapped inside": lambda: nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.DataParallel(nn.Linear(4, 2))),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(forms.DropPath()),
    "scripted": lambda: torch.jit.script(nn.Linear(4, 4)),
    "traced": lambda: torch.jit.trace(nn.Linear(4, 4), X),
    "quantised by torch": lambda: torch.ao.nn.quantized.dynamic.Linear(4, 4),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "on half precision": lambda: nn.Linear(4, 4).bfloat16(),
}
FORMS = {
    name: form
    for name, form in vars(forms).items()
    if isinstance(form, type) and issubclass(form, nn.Module) and form is not forms.Lines
}
CASES: dict[str, Callable[[], nn.Module]] = {**FORMS, **WRAPPED}
RAW = (
    "FakeTensor",
    "symint",
    "SymInt",
    "guard",
    "u0",
    "Dynamo",
    "dynamo",
    "TORCH_LOGS",
    "aten::",
    "Traceback",
    "fbcode",
)
"""Words of torch's tracing that nobody should have to read."""


def describe(name: str) -> str:
    """Return what becomes of a module, in a line."""
    torch.manual_seed(0)
    random.seed(0)
    model = unwrap(CASES[name]())
    inputs = OWN_INPUTS.get(name, (X,))
    try:
        bound = bind(model, inputs, KEYWORDS.get(name, {}))
        program = capture(bound.module, bound.inputs, bound.names)
    except (BadInput, Unsupported) as error:
        return f"{type(error).__name__}: {re.sub(r'[/.a-z_-]*odd/forms.py', 'forms.py', str(error))}"
    for made, wanted in zip(run(program, bound.inputs), run_eager(bound.module, bound.inputs), strict=True):
        torch.testing.assert_close(made, wanted)
    counts = ", ".join(
        f"{operator.removeprefix('aten.')} {n}" for operator, n in count_operators(program.module).items()
    )
    return f"{', '.join(program.input_names)} -> {', '.join(program.output_names)}: {counts}"


@pytest.fixture(scope="module")
def described() -> dict[str, str]:
    """What becomes of every module, in a process that prints nothing of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: describe(name) for name in CASES}


def test_each_works_or_gets_a_sentence(described: dict[str, str], golden: Callable[[str, str], None]) -> None:
    golden("odd_modules", "".join(f"{name}: {line}\n" for name, line in described.items()))


def test_sentences_are_of_one_line_without_a_compilers_words(described: dict[str, str]) -> None:
    refused = {name: line for name, line in described.items() if line.startswith(("BadInput", "Unsupported"))}
    assert len(refused) >= 24
    for name, line in refused.items():
        assert "\n" not in line, name
        assert len(line) < 420, name
        assert not [word for word in RAW if word in line], line
        assert ";" in line, f"{name} names no way out: {line}"


@pytest.mark.parametrize(
    "name", ["BranchOnValues", "LengthFromValues", "ToAList", "WrongRank", "NeedsCuda", "KeepsState"]
)
def test_a_sentence_names_the_line_in_the_users_file(name: str, described: dict[str, str]) -> None:
    number = re.search(r"forms\.py:(\d+) \((.+?)\)", described[name])
    assert number is not None, described[name]
    lines = open(forms.__file__, encoding="utf-8").read().splitlines()  # noqa: SIM115, PTH123  # one line of a test
    assert number[2] in lines[int(number[1]) - 1]


def test_whoever_wraps_the_capture_is_not_blamed(monkeypatch: pytest.MonkeyPatch, described: dict[str, str]) -> None:
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *given, **options: export(*given, **options))
    for name in ("scripted", "quantised by torch", "BranchOnValues"):
        assert describe(name) == described[name]


def test_a_capture_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unsupported):
        capture(forms.BranchOnValues(), (X,))
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_a_mask_is_added_whatever_it_is() -> None:
    model = forms.TakesAnyMask()
    program = capture(model, OWN_INPUTS["TakesAnyMask"])
    for mask in (torch.zeros(4, 4), torch.full((4, 4), -torch.inf).tril(-1), torch.randn(4, 4)):
        torch.testing.assert_close(run(program, (SQUARE, mask)), run_eager(model, (SQUARE, mask)))


def test_distributions_check_their_arguments_after_a_capture() -> None:
    torch.distributions.Distribution.set_default_validate_args(True)  # torch.compile, for one, leaves them unchecked
    capture(forms.Distributes(), (X,))
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(X, -X.abs())


def test_hooks_leave_nothing_of_the_capture_behind() -> None:
    model = forms.Hooked()
    capture(model, (X,))
    assert model.seen == {}
    model(X)
    assert not isinstance(model.seen["output"], FakeTensor)


def test_wrappers_are_back_after_a_capture() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.DataParallel(nn.Linear(4, 2)))
    program = capture(model, (X,))
    assert [type(one).__name__ for one in model] == ["OptimizedModule", "DataParallel"]
    assert {str(n.target) for n in program.module.graph.nodes if n.op == "get_attr"} == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    }


def test_data_of_a_tensor_is_that_tensor() -> None:
    model = forms.DotData()
    program = capture(model, (X,))
    assert torch.equal(run(program, (3 * X,))[0], model(3 * X))


def test_free_batches_of_nests_stay_free() -> None:
    class Adds(nn.Module):
        def forward(self, pair: dict[str, Tensor], *, scale: float) -> dict[str, Tensor]:
            return {"sum": (pair["a"] + pair["b"]) * scale}

    bound = bind(Adds(), (), {"pair": {"a": torch.ones(2, 4), "b": torch.ones(2, 4)}, "scale": 3.0})
    program = capture(bound.module, bound.inputs, bound.names, dynamic_batch=True)
    assert program.input_names == ("pair_a", "pair_b")
    assert program.output_names == ("sum",)
    assert run(program, (torch.ones(5, 4), torch.ones(5, 4)))[0].shape == (5, 4)
