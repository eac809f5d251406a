"""Every model of the registry: its facts, its builder, its shapes, and what the compiler makes of it."""

from __future__ import annotations

import math
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import edgesmith
from edgesmith.errors import BadInput
from edgesmith.exporters.export import explain
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.models import registry
from edgesmith.models.checkpoint import load
from edgesmith.models.registry import ImageInput, ModelSpec
from edgesmith.models.transnext import AggregatedAttention
from edgesmith.plugins import PluginWarning

pytestmark = pytest.mark.wheel

OF_THEIR_OWN = ("metaformer", "segformer", "vim2")
"""Families whose tests count by the sheets' own convention, on no device: tests/test_<family>.py."""

SPECS = [
    spec
    for spec in registry.all_models().values()
    if isinstance(spec.input, ImageInput) and spec.family not in OF_THEIR_OWN
]

# Parameters and multiply-accumulates of the authors' own code as fvcore counts them, millions; and the FLOPs that the
# papers print, billions, which also count arithmetic that is no multiply-accumulate.
MEASURED = {
    "affnet_et": (1_436_264, 375),
    "affnet_t": (2_654_232, 818),
    "affnet": (5_568_696, 1494),
    "casvit_xs": (3_200_700, 554),
    "casvit_s": (5_764_224, 923),
    "casvit_m": (12_421_520, 1874),
    "casvit_t": (21_763_120, 3579),
    "efficientvim_m1": (6_679_458, 239),
    "efficientvim_m2": (13_903_842, 355),
    "efficientvim_m3": (16_604_174, 656),
    "efficientvim_m4": (19_606_505, 1112),
    "iformer_small": (19_866_344, 4828),
    "iformer_base": (47_866_216, 9344),
    "iformer_large": (86_637_096, 14007),
    "iformer_small_384": (20_899_944, 16038),
    "iformer_base_384": (48_936_296, 30452),
    "iformer_large_384": (87_743_656, 45216),
    "transnext_micro": (12_809_304, 2649),
    "transnext_tiny": (28_258_960, 5711),
    "transnext_small": (49_741_564, 10291),
    "transnext_base": (89_721_496, 18300),
    "transnext_micro_AAAA": (13_114_008, 3326),
}
PUBLISHED = {
    "affnet_et": ("1.4", 0.4),
    "affnet_t": ("2.6", 0.8),
    "affnet": ("5.5", 1.5),
    "casvit_xs": ("3.20", 0.56),
    "casvit_s": ("5.76", 0.93),
    "casvit_m": ("12.42", 1.89),
    "casvit_t": ("21.76", None),
    "efficientvim_m1": ("6.7", 0.239),
    "efficientvim_m2": ("13.9", 0.355),
    "efficientvim_m3": ("16.6", 0.656),
    "efficientvim_m4": ("19.6", 1.111),
    "iformer_small": ("20", 4.8),
    "iformer_base": ("48", 9.4),
    "iformer_large": ("87", 14.0),
    "iformer_small_384": (None, 16.1),
    "iformer_base_384": (None, 30.5),
    "iformer_large_384": (None, 45.3),
    "transnext_micro": ("12.8", 2.7),
    "transnext_tiny": ("28.2", 5.7),
    "transnext_small": ("49.7", 10.3),
    "transnext_base": ("89.7", 18.4),
    "transnext_micro_AAAA": ("13.1", 3.3),
}
MIXERS = {
    "affnet_et": ("fft_filter", 9),
    "affnet_t": ("fft_filter", 9),
    "affnet": ("fft_filter", 9),
    "casvit_xs": ("additive_attention", 10),
    "casvit_s": ("additive_attention", 15),
    "casvit_m": ("additive_attention", 15),
    "casvit_t": ("additive_attention", 15),
    "efficientvim_m1": ("hidden_state_mixer", 6),
    "efficientvim_m2": ("hidden_state_mixer", 6),
    "efficientvim_m3": ("hidden_state_mixer", 6),
    "efficientvim_m4": ("hidden_state_mixer", 9),
    "iformer_small": ("inception_mixer", 18),
    "iformer_base": ("inception_mixer", 30),
    "iformer_large": ("inception_mixer", 36),
    "iformer_small_384": ("inception_mixer", 18),
    "iformer_base_384": ("inception_mixer", 30),
    "iformer_large_384": ("inception_mixer", 36),
    "transnext_micro": ("aggregated_attention", 19),
    "transnext_tiny": ("aggregated_attention", 19),
    "transnext_small": ("aggregated_attention", 32),
    "transnext_base": ("aggregated_attention", 33),
    "transnext_micro_AAAA": ("aggregated_attention", 21),
}
ENTRIES = {  # of the authors' state dicts; the other variants:
    "casvit_xs": 524,
    "efficientvim_m4": 406,
    "iformer_base": 593,
    "iformer_base_384": 593,
    "iformer_large": 707,
    "iformer_large_384": 707,
    "transnext_small": 1054,
    "transnext_base": 1083,
    "transnext_micro_AAAA": 635,
}
ENTRIES_OF_FAMILY = {"affnet": 416, "casvit": 764, "efficientvim": 307, "iformer": 373, "transnext": 617}
MAPS = {
    "affnet": (4, 8, 16, 32),
    "casvit": (4, 8, 16, 32),
    "efficientvim": (16, 32, 64),
    "iformer": (4, 8, 16, 32),
    "transnext": (4, 8, 16, 32),
}  # pixels of the image to one of the map, rounded up


LARGE = ("iformer", "transnext")  # without numbers here; their own tests rewrite and export them


def name(spec: ModelSpec) -> str:
    return spec.name


def build(spec: ModelSpec, **options: bool) -> tuple[nn.Module, torch.device]:
    """A model and the device to call it on: of what is large shapes alone, without numbers."""
    device = torch.device("meta" if spec.family in LARGE else "cpu")
    with device:
        return registry.build(spec, **options), device


def count_macs(model: nn.Module, x: torch.Tensor) -> int:
    """fvcore's convention: convolutions and products by torch's counter, so many for each value of other layers."""
    extra = 0
    each = {nn.BatchNorm2d: 2, nn.GroupNorm: 5, nn.AdaptiveAvgPool2d: 1}  # a pool's are those that it reads

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal extra
        if isinstance(module, AggregatedAttention):  # keys, values and tokens of nine neighbours, and pooled cells
            cells = math.prod(max(n // module.reduction, 1) for n in inputs[0].shape[2:])
            extra += (27 + 2 * cells) * inputs[0].numel()
        else:
            extra += each[type(module)] * inputs[0].numel()

    for module in model.modules():
        if type(module) in each or isinstance(module, AggregatedAttention):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2 + extra


def test_the_tables_above_cover_the_registry() -> None:
    assert list(MEASURED) == list(PUBLISHED) == list(MIXERS) == [spec.name for spec in SPECS]


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_parameters_and_macs_are_the_published_ones(spec: ModelSpec) -> None:
    model, device = build(spec)
    params, macs_m = MEASURED[spec.name]
    printed_params, printed_flops = PUBLISHED[spec.name]
    assert sum(p.numel() for p in model.parameters()) == spec.params == params
    if printed_params is not None:
        digits = len(printed_params.partition(".")[2])
        millions = spec.params / 1e6
        if spec.family in ("affnet", "transnext"):  # whose papers cut off what the others round
            millions = int(millions * 10**digits) / 10**digits
        assert f"{millions:.{digits}f}" == printed_params
    with device:
        assert count_macs(model, torch.zeros(1, *spec.input.shape)) == spec.macs
    assert round(spec.macs / 1e6) == macs_m
    if spec.family == "affnet":
        assert round(spec.macs / 1e9, 1) == printed_flops
    elif printed_flops is not None:  # a paper's figure may have activations and sums too, 1.1 % at most, or be cut off
        is_rounded = spec.family in LARGE and abs(spec.macs / 1e9 - printed_flops) <= 0.06  # to one digit
        assert is_rounded or printed_flops * 0.989 <= spec.macs / 1e9 <= printed_flops * 1.001


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_state_dict_has_as_many_entries_as_the_authors(spec: ModelSpec) -> None:
    assert len(build(spec)[0].state_dict()) == ENTRIES.get(spec.name, ENTRIES_OF_FAMILY[spec.family])


@pytest.mark.parametrize("spec", SPECS, ids=name)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_outputs_have_the_documented_shapes(spec: ModelSpec, size: tuple[int, int]) -> None:
    model, device = build(spec)
    with torch.no_grad(), device:
        x = torch.zeros(2, 3, *size)
        assert model(x).shape == (2, spec.classes)
        maps = build(spec, features=True)[0](x)
    expected = [tuple(math.ceil(n / step) for n in size) for step in MAPS[spec.family]]
    assert [tuple(m.shape[2:]) for m in maps] == expected


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.family not in LARGE], ids=name)
def test_rewritten_graph_holds_its_mixers_and_no_batch_norm(
    spec: ModelSpec, golden: Callable[[str, str], None]
) -> None:
    before, after, reports = explain(spec.name, "onnx", input_size=(64, 64))
    counts = count_operators(after.module)
    mixer, number = MIXERS[spec.name]
    assert counts[f"edgesmith.{mixer}"] == number
    assert "aten.batch_norm" not in counts
    assert count_operators(before.module)["aten.batch_norm"] > 30
    assert not next(report for report in reports if report.name == f"fuse_{mixer}").rejected
    golden(f"{spec.name}.rewritten", "".join(f"{count:5} {op}\n" for op, count in counts.items()))


def test_dense_features_keep_exactly_the_four_output_norms() -> None:
    _, after, reports = explain("casvit_xs", "onnx", input_size=(64, 64), features=True)
    assert count_operators(after.module)["aten.batch_norm"] == 4
    folds = next(report for report in reports if report.name == "fold_batchnorm")
    assert [rejection.site for rejection in folds.rejected] == ["norm0", "norm2", "norm4", "norm6"]


def test_an_unknown_model_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(
        BadInput, match=r"unknown model 'casvit_xss'. Nearest: casvit_xs, .* List them: edgesmith models"
    ):
        registry.get("casvit_xss")


# families of other packages

FACTS = """
family = "tiny"
paper = "none"
source = "here"
licence = "MIT"
task = "counting"
classes = 5
[input]
name = "frames"
shape = [7, 3]
normalised = "not at all"
[models.{name}]
params = 20
macs = 15
top1 = []
"""
FAMILY = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, frames=7, num_classes=5):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean(1))

def tiny(**options):
    return Tiny(**options)

def from_checkpoint(state, frames=None):
    return {"num_classes": len(state["head.bias"])}, state, ["it is tiny"]
"""
Install = Callable[..., None]


def test_a_family_of_another_package_is_listed_without_importing_it_and_exported(
    install: Install, tmp_path: Path
) -> None:
    install(
        "tiny_family", FAMILY, group="edgesmith.models", files={"tiny_family.toml": FACTS.format(name="tiny")}, any=""
    )
    spec = registry.get("tiny")
    assert "tiny_family" not in sys.modules
    assert (spec.family, spec.input.shape, spec.module) == ("tiny", (7, 3), "tiny_family")
    assert list(registry.all_models())[-1] == "tiny"
    state = {"head.weight": torch.ones(4, 3), "head.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "tiny.pth")
    model, weights = load(spec, tmp_path / "tiny.pth")
    assert model(torch.ones(1, 7, 3)).tolist() == [[3.0] * 4]
    assert weights.notes == ("it is tiny",)
    artifact = edgesmith.export("tiny", "onnx", weights=tmp_path / "tiny.pth", out=tmp_path)
    assert artifact.model == "tiny"


def test_a_family_in_one_file_has_its_facts_in_a_table(install: Install) -> None:
    table = tomllib.loads(FACTS.format(name="tiny"))
    install("one_file", f"FACTS = {table!r}\n{FAMILY}", group="edgesmith.models", tiny=":FACTS")
    assert registry.get("tiny").module == "one_file"
    assert registry.build(registry.get("tiny"))(torch.zeros(2, 7, 3)).shape == (2, 5)


def test_a_family_whose_module_does_not_load_is_listed_and_says_so_when_it_is_built(install: Install) -> None:
    source = "import no_such_module_anywhere"
    install("half", source, group="edgesmith.models", files={"half.toml": FACTS.format(name="tiny")}, tiny="")
    sentence = (
        "model tiny cannot be built, for half does not load (ModuleNotFoundError: No module named 'no_such_module"
    )
    with pytest.raises(BadInput, match=re.escape(sentence)):
        registry.build(registry.get("tiny"))


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (FACTS.format(name="casvit_xs"), "broken of broken 1.0 has a model casvit_xs, and so has casvit; rename it"),
        ("family = ", "broken of broken 1.0 does not load ("),
        ('family = "tiny"', "broken of broken 1.0 is wrong in broken (KeyError: 'models')"),
        (FACTS.format(name="tiny") + "colour = 1", "broken of broken 1.0 is wrong in broken (TypeError: ModelSpec"),
        (None, "broken of broken 1.0 does not load (cannot read the table of facts "),
    ],
)
def test_a_family_that_is_wrong_is_one_sentence_and_the_others_are_there(
    install: Install, facts: str | None, sentence: str
) -> None:
    files = {} if facts is None else {"broken.toml": facts}
    own = list(registry.all_models())
    install("broken", FAMILY, group="edgesmith.models", files=files, tiny="")
    with pytest.warns(
        PluginWarning, match=re.escape(f"plugin 'tiny' of edgesmith.models is left out: {sentence}")
    ) as said:
        assert list(registry.all_models()) == own
    assert len(said) == 1
