"""Costs of a target's operators: the figures by which rewrites choose between equal forms."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """The figures of a target that decide between equal forms.

    Attributes:
        launch_us: starting one operator, microseconds.
        copy_gb_s: moving an activation, as a split or concatenation does, gigabytes a second; infinite where it is
            only a view.
        gmac_s: multiply-accumulates in a matmul of fair size, 10^9 a second.
        stream_gb_s: reading weights, and reading and writing what an elementwise operator works on, gigabytes a second.
        depthwise_gmac_s: multiply-accumulates in a depthwise convolution with a large kernel, 10^9 a second.
        columns: how many columns of a matmul are computed together; fewer take as long.
        matmul_us: starting each of the matmuls of a batch, microseconds.
        loop_us: starting one operator in the body of a loop, microseconds.
        read_gb_s: reading a matrix that stays near, to multiply one vector after the other by it, gigabytes a second.
        tile_gb_s: transforming tiles of what a convolution reads and writes, gigabytes a second; 0 where convolutions
            are not to be replaced by their Winograd forms, because the runtime has its own or the precision is low.
        fetch_gb_s: getting memory that activations lie in into the caches and out again, gigabytes a second; infinite
            where the runtime does not work through whole maps operator by operator.
        adds_left_bias: a product with its matrix on the left, W x, has its bias added by an operator of its own, where
            a layer takes it in.
    """

    launch_us: float
    copy_gb_s: float = math.inf
    gmac_s: float = 50.0
    stream_gb_s: float = 10.0
    depthwise_gmac_s: float = 5.0
    columns: int = 16
    matmul_us: float = 0.0
    loop_us: float = 0.0
    read_gb_s: float = math.inf
    tile_gb_s: float = 0.0
    fetch_gb_s: float = math.inf
    adds_left_bias: bool = False
