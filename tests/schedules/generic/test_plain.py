"""Attention and gather as plain loops, at awkward sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_runs import check, machine, make

from hwq.schedules.generic import plain
from hwq.workload import Workload


def check_float(workload: Workload, arguments: list[Any]) -> None:
    """Within what sums of at most 127 products in float32 differ."""
    check(workload, machine(), arguments, tolerance=2e-5, kernel=plain.apply(workload, machine()))


def _normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["int64", "int32"])
@pytest.mark.parametrize("shape", [(1,), (2, 7), (3, 1, 5)])
def test_gather_stays_inside_of_its_table(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> None:
    ids = rng.integers(-40, 40, shape).astype(kind)
    ids.flat[0] = np.iinfo(kind).min
    check_float(make("gather", "f32", [shape], (*shape, 17), ids=kind, rows=13), [ids, _normal(rng, 13, 17)])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "lengths", "dims", "bias"),
    [
        (1, 1, (1, 1), (1, 1), None),
        (3, 3, (7, 7), (5, 9), (2, 1, 1, 7)),
        (6, 2, (5, 17), (16, 16), (1, 6, 5, 17)),
        (4, 1, (16, 33), (8, 4), None),
    ],
)
def test_attention(
    heads: int, kv_heads: int, lengths: Any, dims: Any, bias: Any, causal: bool, rng: np.random.Generator
) -> None:
    (queries, keys), (dim, dim_v) = lengths, dims
    shapes = [(2, queries, heads * dim), (2, keys, kv_heads * dim), (2, keys, kv_heads * dim_v)]
    values = [_normal(rng, *shape) for shape in shapes]
    given = [] if bias is None else [_normal(rng, *bias)]
    attrs: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "scale": 0.37, "causal": causal}
    out = (2, queries, heads * dim_v)
    check_float(make("attention", "f32", [*shapes, *([bias] if bias else [])], out, **attrs), [*values, *given])
    if bias is not None:  # the same as a constant
        check_float(make("attention", "f32", shapes, out, **attrs, bias=bias), [*values, *given])


@pytest.mark.parametrize("bias", [None, "input", "constant"])
def test_attention_of_cut_lengths_reads_no_key_beyond_them(bias: str | None, rng: np.random.Generator) -> None:
    shapes = [(1, 5, 12), (1, 9, 4), (1, 9, 6)]
    values = [_normal(rng, *shape) for shape in shapes]
    mask, span = _normal(rng, 1, 1, 5, 9), np.array([5, 6], np.int32)
    for value in (*values[1:], mask[0, 0].T[None]):
        value[:, 6:] = np.inf
    attrs: dict[str, Any] = {"heads": 3, "kv_heads": 1, "scale": 0.5, "causal": True, "cut": True}
    given = [*shapes, *([mask.shape] if bias == "input" else []), (2,)]
    if bias == "constant":
        attrs["bias"] = mask.shape
    arguments = {None: [span], "input": [mask, span], "constant": [span, mask]}[bias]
    check_float(make("attention", "f32", given, (1, 5, 18), **attrs), [*values, *arguments])


def test_what_it_does_not_take() -> None:
    assert plain.apply(make("softmax", "f32", [(2, 3)], (2, 3), axis=1), machine()) is None
    assert plain.apply(make("gather", "w8a8", [(2,)], (2, 3), ids="int64", rows=4), machine()) is None
