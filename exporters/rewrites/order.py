"""The rewrites, in their order, and running them.

    drop_aliases        a second name of an operator -> its first
    find_memory         irfft(rfft(u) * H) -> a linear recurrence
    give_batch          a layer of one example without a batch -> that of a batch of one
    drop_copies         a copy of x -> x
    find_mean           sum(x) / number of x -> mean(x)
    drop_ones           x * ones -> x
    recognise           a fused op in another spelling -> that op
    fold_constants      what is computed from parameters alone becomes a parameter
    find_closed_scan    exp(S) cumsum(U exp(-S)) -> a selective scan
    find_loop_scan      an unrolled loop of h = exp(P_t) h + U_t -> a selective scan
    find_state_space    a state space scan in another spelling -> edgesmith.ssd
    find_quasiseparable scans in both directions -> edgesmith.quasiseparable
    find_averages       damped averages by a loop -> edgesmith.damped_ema
    reroll              an unrolled loop, or a scan, of one step -> one op
    canonicalise        one spelling for pools, splits, gates and sums, so that patterns need only one
    find_layer_norm     a layer norm over the last axis that is spelled out -> aten.layer_norm
    find_aggregated     aggregated attention in another spelling -> edgesmith.aggregated_attention
    find_codewords      the nearest codeword in another spelling -> edgesmith.vector_quantise
    find_conv_glu       gelu(dw3x3(a)) * v -> edgesmith.conv_glu
    keep_maps           [B, N, C] between convolutions -> maps [B, C, H, W], laid out once
    merge_linears       (L1(x) + L2(x)) * s  ->  L(x)
    fold_batchnorm      BN(conv(x)) -> conv'(x);  conv(BN(x)) -> conv'(x);  linear(mean(BN(x))) -> linear'(mean(x))
    fuse_channel_norm   a layer norm that is spelled out -> one operator
    lift_flatten        conv1d(flatten(x)) -> flatten(conv2d(x)): chains of maps stay maps
    drop_shift          softmax(x + c) -> softmax(x)
    fold_residual       s x + t conv(x) -> conv'(x)
    fold_borders        conv(x + c), padded with zeros -> conv(x) + a constant map
    fold_affine         s f(x) + c -> f'(x), and what is left of layer scales
    concat_linears      L1(x) + L2(y) -> L([x | y])
    fold_group_norm     conv(g n(x) + b) -> conv'(n(x)), n the normalisation of a group norm without its affine
    fuse                the graph of a fused op's reference -> that fused op
    split_resized       conv1x1([resize(a) | b]) -> resize(conv1x1(a)) + conv1x1(b), where that is cheaper
    compose_layers      conv1x1(conv1x1(x)) -> conv1x1'(x), also through a concatenation, where that is no dearer
    fold_filters        irfft(rfft(x) * constant) -> a convolution or a matrix, where the target says cheaper
    short_time          stft, istft -> windows, and torch.fft transforms of them
    dft                 torch.fft transforms -> matmuls; complex values -> pairs of real ones
    unstack             f(stack(a, b))[..., 0] -> f(a), where nothing reads the whole
    zero_masked_rows    sdpa(q, k, v, mask) -> 0 where a query sees no key
    einsum              einsum(A, B) -> matmul(A', B')
    fuse_attention      softmax(s q k' + bias) v -> edgesmith.attention, s in the layer before q
    find_inception      convolution, max pool and attention, joined -> edgesmith.inception_mixer
    choose_memory_form  a linear recurrence -> its cheapest form, or none of it
    choose_scan_form    a scan -> its cheapest form
    dense_transforms    frequency filters that transform a map by one matrix, where the target says cheaper
    turn_products       W x + b along the second last axis, in a row -> linear(x', W, b)', where the target says cheaper
    share_gates         additive attention with q's and k's gates in common convolutions, where the target says cheaper
    winograd            convolutions over time with fewer multiplies, where the target says faster
    tile_channels       the widest maps in tiles of channels, where the target gains by less memory in use

Another package's rewrites come from the entry points `edgesmith.rewrites`: each is a `Rewrite`, which runs right behind
the one that its `after` names, else behind `fold_batchnorm`, where graphs are in their simplest spelling and nothing is
fused yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch.fx import GraphModule

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, with_module
from edgesmith.exporters.graph.edit import fork, tidy
from edgesmith.exporters.rewrites.canonicalise import canonicalise
from edgesmith.exporters.rewrites.canonicalise_layers import keep_ends
from edgesmith.exporters.rewrites.choose_memory_form import choose_memory_form
from edgesmith.exporters.rewrites.choose_scan_form import choose_scan_form
from edgesmith.exporters.rewrites.compose_layers import compose_layers
from edgesmith.exporters.rewrites.concat_linears import concat_linears
from edgesmith.exporters.rewrites.dense_transforms import dense_transforms
from edgesmith.exporters.rewrites.dft import dft
from edgesmith.exporters.rewrites.drop_aliases import drop_aliases
from edgesmith.exporters.rewrites.drop_copies import drop_copies
from edgesmith.exporters.rewrites.drop_ones import drop_ones, find_mean
from edgesmith.exporters.rewrites.drop_shift import drop_shift
from edgesmith.exporters.rewrites.einsum import einsum
from edgesmith.exporters.rewrites.find_aggregated import find_aggregated
from edgesmith.exporters.rewrites.find_averages import find_averages
from edgesmith.exporters.rewrites.find_codewords import find_codewords
from edgesmith.exporters.rewrites.find_conv_glu import find_conv_glu
from edgesmith.exporters.rewrites.find_inception import find_inception
from edgesmith.exporters.rewrites.find_memory import find_memory
from edgesmith.exporters.rewrites.find_selective_scan import find_closed_scan, find_loop_scan
from edgesmith.exporters.rewrites.find_state_space import find_quasiseparable, find_state_space
from edgesmith.exporters.rewrites.fold_affine import fold_affine
from edgesmith.exporters.rewrites.fold_batchnorm import fold_batchnorm
from edgesmith.exporters.rewrites.fold_borders import fold_borders
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.fold_filters import fold_filters
from edgesmith.exporters.rewrites.fold_group_norm import fold_group_norm
from edgesmith.exporters.rewrites.fold_residual import fold_residual
from edgesmith.exporters.rewrites.fuse import fuse
from edgesmith.exporters.rewrites.fuse_attention import fuse_attention
from edgesmith.exporters.rewrites.fuse_channel_norm import find_layer_norm, fuse_channel_norm
from edgesmith.exporters.rewrites.give_batch import give_batch
from edgesmith.exporters.rewrites.keep_maps import keep_maps
from edgesmith.exporters.rewrites.lift_flatten import lift_flatten
from edgesmith.exporters.rewrites.merge_linears import merge_linears
from edgesmith.exporters.rewrites.recognise import recognise
from edgesmith.exporters.rewrites.reroll import reroll
from edgesmith.exporters.rewrites.rewrite import Rewrite, RewriteReport
from edgesmith.exporters.rewrites.share_gates import share_gates
from edgesmith.exporters.rewrites.short_time import short_time
from edgesmith.exporters.rewrites.split_resized import split_resized
from edgesmith.exporters.rewrites.tile_channels import tile_channels
from edgesmith.exporters.rewrites.turn_products import turn_products
from edgesmith.exporters.rewrites.unstack import unstack
from edgesmith.exporters.rewrites.winograd import winograd
from edgesmith.exporters.rewrites.zero_masked_rows import zero_masked_rows
from edgesmith.kernels.op import all_ops
from edgesmith.plugins import leave_out, load_plugins

PLUGINS = "edgesmith.rewrites"
SIMPLE = "fold_batchnorm"
"""The rewrite behind which those of other packages run that name none."""


ORDER: tuple[Rewrite, ...] = (
    drop_aliases,
    find_memory,
    give_batch,
    drop_copies,
    find_mean,
    drop_ones,
    recognise,
    fold_constants,
    find_closed_scan,
    find_loop_scan,
    find_state_space,
    find_quasiseparable,
    find_averages,
    reroll,
    canonicalise,
    find_layer_norm,
    find_aggregated,
    find_codewords,
    find_conv_glu,
    keep_maps,
    merge_linears,
    fold_batchnorm,
    fuse_channel_norm,
    lift_flatten,
    drop_shift,
    fold_residual,
    fold_borders,
    fold_affine,
    concat_linears,
    fold_group_norm,
    *(fuse(op) for op in all_ops().values() if op.is_pattern),
    split_resized,
    compose_layers,
    fold_filters,
    short_time,
    dft,
    unstack,
    zero_masked_rows,
    einsum,
    fuse_attention,
    find_inception,
    choose_memory_form,
    choose_scan_form,
    dense_transforms,
    turn_products,
    share_gates,
    winograd,
    tile_channels,
)


KEEPING = frozenset({drop_aliases.name})
"""Rewrites behind which constants stay that nobody reads: find_memory looks for its A and b among all of a model's."""


def all_rewrites(streaming: bool = False) -> tuple[Rewrite, ...]:
    """Return the rewrites in the order in which they run, those of other packages among them.

    Args:
        streaming: a step will be made of it: leave out those that choose a form for a whole sequence.
    """
    rules = _with_plugins()
    if not streaming:
        return rules
    return tuple(rule.with_options(**rule.for_steps) for rule in rules if not rule.for_sequences)


@cache
def _with_plugins() -> tuple[Rewrite, ...]:
    names = {rule.name for rule in ORDER}
    behind: dict[str, list[Rewrite]] = {}
    for entry, plugin in load_plugins(PLUGINS, Rewrite).items():
        after = plugin.after or SIMPLE
        if plugin.name in names:
            leave_out(PLUGINS, entry, f"there is a rewrite {plugin.name} already; give it another name")
        elif after not in names:
            leave_out(PLUGINS, entry, f"it is to run after {after}, which is no rewrite of edgesmith")
        else:
            names.add(plugin.name)
            behind.setdefault(after, []).append(plugin)
    return tuple(one for rule in ORDER for one in (rule, *behind.get(rule.name, ())))


def rewrite(
    program: Program, costs: Costs, rewrites: Sequence[Rewrite] | None = None, streaming: bool = False
) -> tuple[Program, list[RewriteReport]]:
    """Run the rewrites on a copy of the program's graph. Returns the new program and one report for each rewrite.

    Args:
        rewrites: default: all of them, see `all_rewrites`, also for `streaming`.
    """
    module = fork(program.module)
    keep_ends(module, program.inputs)
    reports, tidied = [], None
    for rule in all_rewrites(streaming) if rewrites is None else rewrites:
        reports.append(rule.apply(module, costs))
        # Most rewrites leave most graphs alone, and compiling one takes longer than to compare it.
        if rule.name not in KEEPING and _spelled(module) != tidied:
            module = tidy(module)
            tidied = _spelled(module)
    return with_module(program, module), reports


def _spelled(module: GraphModule) -> list[tuple[Any, ...]]:
    """A graph's nodes with all that its code is made of; `repr` because 1, 1.0 and True are equal."""
    return [(node, node.op, node.name, node.target, repr((node.args, node.kwargs))) for node in module.graph.nodes]
