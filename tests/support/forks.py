"""Exports in processes of their own that need not import torch again: forked from one that has imported all of it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import nn

import edgesmith
from edgesmith.exporters.artifact import Artifact

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["onnxruntime", "onnxscript", "onnxsim", "torch.onnx", "edgesmith.exporters.export"])


def begin(folder: Path) -> BaseProcess:
    """Start exporting one convolution to ONNX, below a folder."""
    process = _forks.Process(target=export_convolution, args=(folder,))
    process.start()
    return process


def export_convolution(folder: Path) -> Artifact:
    """Export one convolution to ONNX, below a folder: all of an export's steps in little time."""
    torch.manual_seed(0)
    return edgesmith.export(nn.Conv2d(3, 4, 3), "onnx", inputs=torch.randn(1, 3, 8, 8), name="convolution", out=folder)
