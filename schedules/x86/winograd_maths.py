"""Winograd's F(4x4, 3x3) in integers: 16 outputs of a 3x3 convolution from 36 products a channel instead of 144.

With the points 0, 1, -1, 2, -2 and infinity (arXiv:1509.09308), and every row of the weights' transform scaled up to
whole numbers, for a picture's tile d (6, 6) and a kernel g (3, 3):

    U = G g G^T      V = B^T d B      M = sum over channels of U * V      S = A^T M A      Y = S / (9 * 2^shift)

All of it modulo 2^32, where the division by 9 is a product with its inverse, and that by 2^shift an arithmetic shift.
So Y is exact wherever |Y| < 2^(31 - shift), and the largest shift is 6: |Y| < 2^25. Inputs are taken from their centre,
-128 to 127: that keeps |Y| of 228 channels with 8-bit weights within 128 * 127 * 9 * 228 < 2^25. ``STEPS`` says into
how long sums a reduction is cut. Since B^T 1 is 0 but in one element, centring is one subtraction in V.

The same sums as the direct convolution, to the bit: a scheme's accuracy does not depend on which kernel ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Expr = Any  # whatever adds, subtracts and shifts: a TVM expression, an integer, a NumPy array of them

TILE, KERNEL, WINDOW = 4, 3, 6
INVERSE_OF_9 = 954437177
# S is 3 * 2^shift times Y in each direction, by output row (or column).
SHIFTS = (3, 2, 1, 1)
# V of an input that is 1 everywhere is this at CENTRED and 0 elsewhere.
CENTRED, ONE = (1, 1), 36
# The longest sums, in pairs of channels: -128 * weight * 9 * 2 * STEPS does not leave 26 bits.
STEPS = {"int8": 2**25 // (128 * 127 * 9 * 2), "int4": 2**25 // (128 * 8 * 9 * 2)}


def twice(x: Expr) -> Expr:
    """2 x in the type of x: with a TVM expression, a Python integer would widen it."""
    return x + x


def weight_rows(g: Sequence[Expr]) -> list[Expr]:
    """G g: rows [6 0 0], -[1 1 1], -[1 -1 1], [1 2 4], [1 -2 4], [0 0 6] of three values. |G g| <= 7 |g|."""
    even, odd = g[0] + g[2], g[1]
    far, side = g[0] + twice(twice(g[2])), twice(g[1])
    first, last = (twice(twice(x)) + twice(x) for x in (g[0], g[2]))
    return [first, odd - even - twice(odd), odd - even, far + side, far - side, last]


def _same(x: Expr) -> Expr:
    return x


def input_rows(d: Sequence[Expr], hold: Callable[[Expr], Expr] = _same) -> list[Expr]:
    """B^T d: rows [4 0 -5 0 1 0], [0 -4 -4 1 1 0], [0 4 -4 -1 1 0], [0 -2 -1 2 1 0], [0 2 -1 -2 1 0],
    [0 4 0 -5 0 1] of six values. |B^T d| <= 10 |d|.

    hold: put around each value that has more than one use, to keep a simplifier from multiplying it out.
    """
    near, far = hold(d[4] - twice(twice(d[2]))), hold(d[3] - twice(twice(d[1])))
    even, odd = hold(d[4] - d[2]), hold(twice(hold(d[3] - d[1])))
    return [
        twice(twice(d[0])) - d[2] + near,
        near + far,
        near - far,
        even + odd,
        even - odd,
        d[5] - d[3] - twice(odd),
    ]


def output_rows(m: Sequence[Expr], hold: Callable[[Expr], Expr] = _same) -> list[Expr]:
    """A^T m: 24, 12, 6 and 6 times the four outputs, of six values. hold: as above."""
    p, q, s, d = hold(m[1] + m[2]), hold(m[1] - m[2]), hold(m[3] + m[4]), hold(m[3] - m[4])
    return [twice(twice(p)) + s + m[0], twice(q) + d, p + s, twice(d) + q + m[5]]
