"""The polynomials behind exp and the erf-GELU of compiled kernels, E(x) = erf(x / sqrt 2) / 2 in two forms.

    exp                    2 e^r = 2 + r S(r) for |r| < ln(2) / 2
    exp by steps           2 e^r = 2 + 2 r + r^2 (a + b r) for |r| < ln(2) / 16 or / 32, and a table of powers of two
    a rational function    x P(x^2) / Q(x^2) for |x| < 5.75, where what is left to 1/2 is below 5e-9
    a table                polynomials on 16 intervals of 3/8 around 0, 3/8, ... 45/8, for |x|

P and Q are fitted by least squares with weights that make the error of x E equal everywhere, all others at
Chebyshev's points. Printed: the coefficients as functions.h has them, and the largest errors of the GELU in fp32
arithmetic.

    python -m edgesmith.bench.experiments.functions 5 5 4 5        degrees of P, Q, the table, and S
"""

from __future__ import annotations

import math

import numpy as np

from edgesmith.bench.experiments.command import read_arguments

EDGE = 5.75
ROUNDS = 60
INTERVALS = 16
STEP = 0.375


def fit(top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of P and Q, lowest power first, Q's first one 1."""
    x = EDGE * np.sin(np.linspace(0.001, math.pi / 2, 4000))
    u = x * x
    wanted = np.array([math.erf(t / math.sqrt(2)) / 2 / t for t in x])
    scale = u.max()
    powers = np.vander(u / scale, max(top, bottom) + 1, increasing=True)
    weights, denominator = np.ones_like(x), np.ones_like(x)
    for _ in range(ROUNDS):  # Loeb's iteration for Q, Lawson's weights for an error that is equal everywhere
        rows = weights * u / denominator
        matrix = np.concatenate((powers[:, : top + 1], -wanted[:, None] * powers[:, 1 : bottom + 1]), axis=1)
        found = np.linalg.lstsq(rows[:, None] * matrix, rows * wanted, rcond=None)[0]
        p, q = found[: top + 1], np.concatenate(([1.0], found[top + 1 :]))
        denominator = powers[:, : bottom + 1] @ q
        error = np.abs(u * (powers[:, : top + 1] @ p / denominator - wanted))
        weights = np.sqrt(weights**2 * (error / error.max() + 1e-3))
        weights /= weights.max()
    return p / scale ** np.arange(top + 1), q / scale ** np.arange(bottom + 1)


def evaluate(p: np.ndarray, q: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the GELU of fp32 numbers, each operation rounded to fp32."""
    t = np.clip(x, np.float32(-EDGE), np.float32(EDGE))
    u = t * t
    over, under = (np.polyval(one[::-1].astype(np.float32), u) for one in (p, q))
    result: np.ndarray = x * (t * over / under + np.float32(0.5))
    return result


def fit_table(degree: int) -> np.ndarray:
    """Return the coefficients [degree + 1, INTERVALS] of E around the middle of each interval, lowest power first."""
    points = np.cos(math.pi * (np.arange(60) + 0.5) / 60) * STEP / 2
    table = []
    for middle in STEP * np.arange(INTERVALS):
        values = [math.erf((middle + t) / math.sqrt(2)) / 2 for t in points]
        table.append(np.polynomial.Chebyshev.fit(points, values, degree).convert(kind=np.polynomial.Polynomial).coef)
    return np.array(table).T


def evaluate_table(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the GELU of fp32 numbers, each operation rounded to fp32."""
    size = np.minimum(np.abs(x), np.float32((INTERVALS - 0.5) * STEP - 1e-5))
    index = np.rint(size / np.float32(STEP)).astype(np.int32)
    rest = size - index.astype(np.float32) * np.float32(STEP)
    rounded = table.astype(np.float32)[:, index]
    series = rounded[-1]
    for row in rounded[-2::-1]:
        series = series * rest + row
    result: np.ndarray = np.abs(x) * series + x * np.float32(0.5)
    return result


def fit_exp(degree: int) -> np.ndarray:
    """Return the coefficients of S, lowest power first."""
    edge = 1.002 * math.log(2) / 2
    points = edge * np.cos(math.pi * (np.arange(80) + 0.5) / 80)
    fitted = np.polynomial.Chebyshev.fit(points, 2 * np.expm1(points) / points, degree)
    coefficients: np.ndarray = fitted.convert(kind=np.polynomial.Polynomial).coef
    return coefficients


def fit_steps(steps: int) -> np.ndarray:
    """Return a and b where powers of two are counted in so many steps."""
    points = 1.002 * math.log(2) / 2 / steps * np.cos(math.pi * (np.arange(80) + 0.5) / 80)
    fitted = np.polynomial.Chebyshev.fit(points, 2 * (np.expm1(points) - points) / points**2, 1)
    coefficients: np.ndarray = fitted.convert(kind=np.polynomial.Polynomial).coef
    return coefficients


def tabulate_steps(steps: int) -> list[str]:
    """Return the bits of 2^(k/steps - 1), less k where the exponent's lowest bits are shifted from."""
    powers = (2 ** (np.arange(steps) / steps - 1)).astype(np.float32).view(np.int32)
    return [hex(bits - (k * 2**23 // steps)) for k, bits in enumerate(powers.tolist())]


def main() -> None:
    """Fit and print."""
    given = read_arguments(__doc__, top=5, bottom=5, table=4, exp=5)
    print(f"S: {', '.join(f'{value:.9g}f' for value in fit_exp(given.exp))}")
    for steps in (16, 8):
        a, b = fit_steps(steps)
        print(f"{steps} steps: a {a:.9g}f, b {b:.9g}f, table {', '.join(tabulate_steps(steps))}")
    p, q = fit(given.top, given.bottom)
    table = fit_table(given.table)
    for name, values in (("P", p), ("Q", q), *((f"power {i}", row) for i, row in enumerate(table))):
        print(f"{name}: {', '.join(f'{value:.9g}f' for value in (values[::-1] if name in 'PQ' else values))}")
    x = np.linspace(-24, 24, 2_000_001).astype(np.float32)
    exact = np.array([t * (1 + math.erf(t / math.sqrt(2))) / 2 for t in x.astype(np.float64)])
    for form, found in (("rational", evaluate(p, q, x)), ("table", evaluate_table(table, x))):
        error = np.abs(found - exact)
        relative = error / np.maximum(1, np.abs(x))
        print(f"{form}: largest error {error.max():.2e}, relative to max(1, |x|) {relative.max():.2e}")


if __name__ == "__main__":
    main()
