"""Entry points of other packages: found, put in order, and left out with one sentence where they do not work."""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites import order
from edgesmith.plugins import PluginWarning, load_plugins

Install = Callable[..., None]

CUBES = """
from edgesmith.exporters.rewrites.rewrite import rewrites
import torch

@rewrites(torch.ops.aten.pow.Tensor_Scalar, rule="x ** 3 -> x * x * x"{options})
def {name}(module, node, costs):
    x, exponent = node.args
    if exponent != 3:
        return None
    with module.graph.inserting_before(node):
        square = module.graph.call_function(torch.ops.aten.mul.Tensor, (x, x))
        new = module.graph.call_function(torch.ops.aten.mul.Tensor, (square, x))
    square.meta.update(node.meta)
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
    return "a power -> a product"
"""


class Cube(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x**3


def test_another_packages_rewrite_runs_and_reports(install: Install) -> None:
    install("cubes", CUBES.format(name="expand_cubes", options=""), cubes=":expand_cubes")
    names = [rule.name for rule in order.all_rewrites()]
    assert names.index("expand_cubes") == names.index("fold_batchnorm") + 1
    program, reports = order.rewrite(capture(Cube(), (torch.randn(3),)), Costs(0))
    assert count_operators(program.module) == {"aten.mul": 2}
    (report,) = (one for one in reports if one.name == "expand_cubes")
    assert [note for _, note in report.applied] == ["a power -> a product"]


def test_a_plugin_says_behind_which_rewrite_it_runs_and_for_whole_sequences_only(install: Install) -> None:
    options = ', after="winograd", for_sequences=True'
    install("late", CUBES.format(name="late", options=options), late=":late")
    install("later", CUBES.format(name="later", options=options), later=":later")
    names = [rule.name for rule in order.all_rewrites()]
    at = names.index("winograd")
    assert names[at : at + 4] == ["winograd", "late", "later", "tile_channels"]
    assert "late" not in [rule.name for rule in order.all_rewrites(streaming=True)]


@pytest.mark.parametrize(
    ("source", "attribute", "sentence"),
    [
        ("import no_such_module_anywhere", ":x", "does not load (ModuleNotFoundError: No module named"),
        ("import sys; sys.exit(3)", ":x", "does not load (SystemExit: 3)"),
        ("y = 1", ":x", "does not load (AttributeError:"),
        ("x = 1", ":x", "is a int, wanted a Rewrite"),
        (CUBES.format(name="x", options=', after="nothing"'), ":x", "is to run after nothing, which is no rewrite"),
        (CUBES.format(name="dft", options=""), ":dft", "there is a rewrite dft already"),
    ],
)
def test_a_broken_plugin_is_one_sentence_that_names_it_and_the_rest_works(
    install: Install, source: str, attribute: str, sentence: str
) -> None:
    install("broken", source, mine=attribute)
    install("cubes", CUBES.format(name="expand_cubes", options=""), cubes=":expand_cubes")
    with pytest.warns(PluginWarning, match=re.escape(sentence)) as said:
        names = [rule.name for rule in order.all_rewrites()]
    assert len(said) == 1
    assert str(said[0].message).startswith("plugin 'mine' of edgesmith.rewrites is left out: ")
    assert [name for name in names if name != "expand_cubes"] == [rule.name for rule in order.ORDER]
    assert "expand_cubes" in names
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        order.all_rewrites()


def test_of_two_plugins_of_one_name_the_first_counts(install: Install) -> None:
    for module in ("one", "two"):
        install(module, f"x = {module!r}", group="edgesmith.things", thing=":x")
    with pytest.warns(PluginWarning, match=r"two:x of two 1.0 offers that name a second time"):
        assert load_plugins("edgesmith.things", str) == {"thing": "one"}


def test_a_plugin_may_be_a_whole_module(install: Install) -> None:
    install("whole", "x = 1", group="edgesmith.things", whole="")
    found = load_plugins("edgesmith.things", types.ModuleType)
    assert found["whole"].x == 1
