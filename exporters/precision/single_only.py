"""Operators that stay fp32: PyTorch has none in half precision, or their own epsilon is zero there.

PyTorch has quantiles, inverses and determinants for float32 and float64 only. cosine_similarity divides by
max(|x|, 1e-8) max(|y|, 1e-8), and 1e-8 is 0 in fp16.
"""

from __future__ import annotations

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import operator_name, operators, site

_SINGLE = frozenset(
    {
        *("quantile", "nanquantile", "histc", "linalg_inv", "linalg_inv_ex", "linalg_solve", "_linalg_solve_ex"),
        *("linalg_cholesky", "linalg_cholesky_ex", "linalg_det", "_linalg_det", "linalg_slogdet", "_linalg_slogdet"),
        *("linalg_qr", "linalg_matrix_exp", "cholesky_solve", "triangular_solve", "linalg_solve_triangular"),
    }
)
_OF_AN_EPSILON = frozenset({"cosine_similarity"})


def find_single_only(program: Program) -> dict[str, str]:
    """Return the names of nodes that have no form in half precision, each with the reason in words."""
    found = {}
    for node in operators(program.module):
        name = operator_name(node).removeprefix("aten.").partition(".")[0]
        if name in _SINGLE:
            found[node.name] = f"{name} at {site(node)} is computed in float32 alone"
        elif name in _OF_AN_EPSILON:
            found[node.name] = f"{name} at {site(node)} divides by an epsilon that half precision does not hold"
    return found
