"""Errors that a user can act on: one sentence each, with what was wanted, what came and what to do.

code  raised as            when
0                          the artifact was published, or every check passed
1     (anything else)      a bug in edgesmith; `--debug` shows where
2     BadInput             a name, option, checkpoint or model that cannot be used
3     VerificationFailed   numbers diverge from PyTorch's beyond the threshold; nothing is published, unless
                           --allow-inaccurate was given, and verify says 3 then. Also lint --strict
4     BackendMissing       the target's packages are not installed, or cannot work on this machine
5     OutputError          the output folder cannot be written
6     Unsupported          the model cannot be captured, or the target or board refuses it
7     DeviceFailed         a device cannot be reached, is another than the known one, is cut off, or fails
8                          compare: head is slower than base
9                          compare: inconclusive, as the machine is too noisy for the time
10                         compare: not comparable, as the two were measured otherwise
130                        interrupted (Ctrl-C, SIGINT)
143                        ended (SIGTERM)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

SLOWER_CODE: Final = 8
INCONCLUSIVE_CODE: Final = 9
NOT_COMPARABLE_CODE: Final = 10
INTERRUPTED = 130
TERMINATED = 143
INTERRUPTION = "interrupted; nothing was published"


class EdgesmithError(Exception):
    """A failure with an answer. `str(error)` is the sentence; `exit_code` is what the command line returns."""

    exit_code = 1


class BadInput(EdgesmithError):
    """A name, option, checkpoint or model that cannot be used as given."""

    exit_code = 2


class Unreadable(BadInput):
    """A foreign file that is damaged, is not what it is taken for, or asks for more than its reader's budget."""


class CheckpointError(BadInput):
    """A weights file that is damaged, unsafe, or of another model."""


class VerificationFailed(EdgesmithError):
    """Outputs diverge from PyTorch's beyond the stated threshold.

    Attributes:
        steps: every check with its figures, as in the manifest's `verification.steps`, where all of them were made.
    """

    exit_code = 3

    def __init__(self, sentence: str, steps: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(sentence)
        self.steps = tuple(steps)


class BackendMissing(EdgesmithError):
    """The packages a target needs are not installed, or do not work on this machine."""

    exit_code = 4


class OutputError(EdgesmithError):
    """The output folder cannot be written: read-only, full, or in the way."""

    exit_code = 5


class Unsupported(EdgesmithError):
    """A model that torch.export cannot capture, an operator that a target refuses, or a kit that a board does."""

    exit_code = 6


class DeviceFailed(EdgesmithError):
    """A device cannot be reached, is not the one that is known, is cut off, or fails at what it was asked."""

    exit_code = 7


class EdgesmithWarning(UserWarning):
    """Something that whoever runs a command should know, in one sentence: it goes to stderr, and nothing stops."""


def unknown(kind: str, name: str, known: Iterable[str], listed_by: str) -> BadInput:
    """The error for a name that is not in a registry, with the nearest names that are, or the first where none is near.

    >>> str(unknown("model", "casvit_xss", ["casvit_xs", "casvit_t"], "edgesmith models"))
    "unknown model 'casvit_xss'. Nearest: casvit_xs, casvit_t. List them: edgesmith models"
    >>> str(unknown("target", "ONNX", ["coreml", "coreai", "onnx"], "edgesmith targets"))
    "unknown target 'ONNX'. Nearest: onnx. List them: edgesmith targets"
    >>> str(unknown("target", "gpu", ["coreml", "coreai", "onnx", "tensorrt", "tvm"], "edgesmith targets"))
    "unknown target 'gpu'. There are coreml, coreai, onnx and 2 more. List them: edgesmith targets"
    """
    known = list(known)
    lower = {one.lower(): one for one in known}
    nearest = [lower[one] for one in get_close_matches(name.lower(), lower, n=3, cutoff=0.4)]
    if nearest:
        told = f"Nearest: {', '.join(nearest)}"
    else:
        more = f" and {len(known) - 3} more" if len(known) > 3 else ""
        told = f"There are {', '.join(known[:3])}{more}" if known else "There are none"
    return BadInput(f"unknown {kind} {name!r}. {told}. List them: {listed_by}")
