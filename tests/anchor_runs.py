"""Workloads of conv2d, depthwise_conv2d and dense, their arguments, and the check of a kernel against the reference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_runs import Array, numbers, run

from hwq import group_scales, numerics, row_scales
from hwq.graph import Activation, Shape
from hwq.reference import evaluate, float_bound
from hwq.schedules.template import Template
from hwq.scheme import SCHEMES as KNOWN
from hwq.target import Target
from hwq.workload import Kernel, Workload

Apply = Callable[..., Kernel | None]
TIERS = ("x86-avx512-vnni", "x86-avx-vnni", "x86-avx2", "x86-generic")
SCHEMES = ("f32", "w8a8", "w4a8")
# In float AVX-VNNI is AVX2.
TIER_SCHEMES = [(name, scheme) for name in TIERS for scheme in SCHEMES if (name, scheme) != ("x86-avx-vnni", "f32")]
BF16_TIER = "x86-avx512-bf16"
RELU = Activation(kind="relu")
RELU6 = Activation(kind="clip", lo=0.0, hi=6.0)
# In integer kernels every activation but these is a table.
TABLED = Activation(kind="silu")


def tier(name: str) -> Target:
    """The target of that name; skips where this CPU cannot run its code.

    AVX-VNNI's vpdpbusd has another encoding in AVX-512VL: where only that one is there, the tier's kernels, vectors of
    256 bits and all, are compiled to it.
    """
    target = Target.load(name)
    if target.missing_flags() == ("avx_vnni",):
        encoded = ("avx512f", "avx512vl", "avx512_vnni")
        flags = (*(flag for flag in target.cpu_flags if flag != "avx_vnni"), *encoded)
        target = replace(target, mattr=tuple(f"+{flag.replace('_', '')}" for flag in encoded), cpu_flags=flags)
    if target.missing_flags():
        pytest.skip(f"{name} needs {', '.join(target.missing_flags())}, which this CPU lacks")
    return target


def anchor(
    op: str,
    scheme: str,
    shape: Shape,
    out_c: int,
    *,
    kernel: tuple[int, int] = (1, 1),
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: Activation | None = None,
    residual: bool = False,
    float_residual: bool = False,
    out: str = "int8",
    has_bias: bool = True,
    parallel: int = 1,
) -> Workload:
    """The workload of one layer on an input of ``shape``, NHWC or (N, K)."""
    attrs: dict[str, Any] = {}
    output: Shape = (*shape[:-1], out_c)
    if op != "dense":
        attrs = {"kernel": kernel, "strides": strides, "padding": padding, "dilation": dilation}
        attrs["groups"] = groups if op == "conv2d" else shape[-1]
        span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        high = (shape[1] + padding[0] + padding[2] - span[0]) // strides[0] + 1
        wide = (shape[2] + padding[1] + padding[3] - span[1]) // strides[1] + 1
        output = (shape[0], high, wide, out_c)
    return Workload(
        op=op,
        scheme=scheme,
        input_shapes=(shape, *([(math.prod(shape[:-1]),)] if KNOWN[scheme].dynamic else []), *([output] * residual)),
        output_shape=output,
        attrs=tuple(sorted(attrs.items())),
        activation=activation or Activation(),
        has_bias=has_bias or KNOWN[scheme].integer,
        residual=residual,
        float_residual=float_residual,
        out_dtype="float32" if KNOWN[scheme].domain == "f32" else out,
        parallel=parallel,
    )


def weight_shape(workload: Workload) -> Shape:
    """(O, KH, KW, I / groups), (C, KH, KW, 1) or (O, I)."""
    in_c, out_c = workload.input_shapes[0][-1], workload.output_shape[-1]
    if workload.op == "dense":
        return (out_c, in_c)
    groups = in_c if workload.op == "depthwise_conv2d" else workload.attr("groups")
    return (out_c, *workload.attr("kernel"), in_c // groups)


def make_arguments(workload: Workload, target: Target, rng: np.random.Generator) -> list[Array]:
    """What the kernel takes, in order, the weight unpacked. Outputs spread over the range and beyond both its ends."""
    out_c, shape = workload.output_shape[-1], weight_shape(workload)
    residual = workload.input_shapes[1:]
    if KNOWN[workload.scheme].dynamic:
        return _dynamic(workload, target, rng)
    if workload.scheme == "w4a16_g128":
        return _weight_only(workload, rng)
    if KNOWN[workload.scheme].domain == "f32":
        floats = [workload.input_shapes[0], *residual, shape, *([(out_c,)] if workload.has_bias else [])]
        return [numbers(rng, each, "float32") for each in floats]
    storage, offset = target.activation_storage, target.activation_offset
    lo, hi = (-127, 128) if workload.scheme == "w8a8" else (-8, 8)
    weight = rng.integers(lo, hi, shape).astype(np.int8)
    zero_x, zero_r, zero_y = (int(value) for value in rng.integers((-128, -128, -50), (128, 128, 50)) + offset)
    terms = int(np.prod(shape[1:]))
    spread = 74.0 * float(np.std(np.arange(lo, hi))) * np.sqrt(terms)  # 74: the deviation of a uniform byte
    multiplier = (rng.uniform(0.5, 1.5, out_c) * 90.0 / spread).astype(np.float32)
    if workload.scheme == "w4a8_g64":
        scales = (_signed(rng, (out_c, -(-terms // 64))) * 90.0 / spread).astype(np.float32)
        start = group_scales.start_values(rng.uniform(-9, 9, out_c), weight, scales, zero_x, 64)
    bias = numerics.fold_zero_point(rng.integers(-999, 999, out_c).astype(np.int32), weight, zero_x)
    least = zero_y if workload.activation.kind == "relu" else offset - 100
    ints = np.array([zero_x, zero_r, zero_y, least, offset + 110], np.int32)
    scalars = np.array([0.37, -30.0, 35.0], np.float32)
    kinds = [storage, "float32" if workload.float_residual else storage]
    x = [numbers(rng, each, kind) for each, kind in zip(workload.input_shapes, kinds, strict=False)]
    table = [] if workload.activation.clamps else [rng.integers(0, 256, 256).astype(np.uint8)]
    if workload.scheme == "w4a8_g64":
        return [*x, weight, start, group_scales.in_lanes(scales), ints, scalars, *table]
    return [*x, weight, bias, multiplier, ints, scalars, *table]


def _signed(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Scales of groups, which may be negative, around 1 in size."""
    return np.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice((-1.0, 1.0), shape))


def _dynamic(workload: Workload, target: Target, rng: np.random.Generator) -> list[Array]:
    """Rows in bytes, scales, [residual], weight, start, multiplier, bias of a dynamic scheme; outputs of a few."""
    shape, group = weight_shape(workload), KNOWN[workload.scheme].group_size
    lo, hi = (-127, 128) if group is None else (-8, 8)
    weight = rng.integers(lo, hi, shape).astype(np.int8)
    rows = rng.integers(1, 256, workload.input_shapes[0]).astype(np.uint8)
    rows = rows if target.activation_storage == "uint8" else (rows ^ 128).view(np.int8)
    scales = rng.uniform(0, 0.1, workload.input_shapes[1]).astype(np.float32)
    spread = 74.0 * float(np.std(np.arange(lo, hi))) * np.sqrt(shape[1])
    channels = (shape[0],) if group is None else (shape[0], -(-shape[1] // group))
    factor = rng.uniform(0.5, 1.5, channels) if group is None else _signed(rng, channels)
    multiplier = (factor * 90.0 / spread).astype(np.float32)
    start = row_scales.start_values(weight, multiplier, target.activation_offset, group)
    residual = [numbers(rng, each, "float32") for each in workload.input_shapes[2:]]
    factors = multiplier if group is None else group_scales.in_lanes(multiplier)
    return [rows, scales, *residual, weight, start, factors, numbers(rng, (shape[0],), "float32")]


def _weight_only(workload: Workload, rng: np.random.Generator) -> list[Array]:
    """Rows of floats, each of a size of its own, [residual], weight, multiplier, [bias]; outputs of a few."""
    shape, size = weight_shape(workload), np.sqrt(workload.input_shapes[0][-1])
    x, *residual = [numbers(rng, each, "float32") for each in workload.input_shapes]
    x = x * rng.uniform(0.1, 3.0, (*x.shape[:-1], 1)).astype(np.float32)
    multiplier = (_signed(rng, (shape[0], -(-shape[1] // 128))) / 9 / size).astype(np.float32)
    weight = rng.integers(-8, 8, shape).astype(np.int8)
    bias = [numbers(rng, (shape[0],), "float32")] if workload.has_bias else []
    return [x, *residual, weight, group_scales.in_lanes(multiplier), *bias]


def packed(workload: Workload, kernel: Kernel, arguments: list[Array]) -> list[Array]:
    """``arguments`` with the weight as the kernel reads it."""
    assert kernel.pack is not None
    at = len(workload.input_shapes)
    return [*arguments[:at], kernel.pack(arguments[at]), *arguments[at + 1 :]]


def result_of(workload: Workload, target: Target, kernel: Kernel, arguments: list[Array]) -> Array:
    """What the kernel writes."""
    dtype = target.activation_storage if workload.out_dtype == "int8" else "float32"
    ready = packed(workload, kernel, arguments)
    return run(kernel, target, ready, workload.output_shape, dtype, weight=len(workload.input_shapes))


def check_anchor(
    apply: Apply, workload: Workload, target: Target, rng: np.random.Generator, *, seed: int | None = None
) -> Kernel:
    """The kernel equals the reference (float schemes: within ``float_bound``); the kernel."""
    kernel = apply(workload, target, seed=seed)
    assert kernel is not None, workload
    arguments = make_arguments(workload, target, rng)
    result = result_of(workload, target, kernel, arguments)
    expected = evaluate(workload, arguments, target.activation_storage)
    assert result.dtype == expected.dtype
    if KNOWN[workload.scheme].domain == "f32":
        exact = KNOWN[workload.scheme].dynamic or KNOWN[workload.scheme].weight is not None
        if exact and workload.activation.clamps:
            np.testing.assert_array_equal(result, expected)
        assert np.all(np.abs(result - expected) <= float_bound(workload, arguments))
    else:
        np.testing.assert_array_equal(result, expected)
        assert expected.size < 99 or len(np.unique(expected)) > 5  # not all clamped
    return kernel


def check_variants(
    templates: Callable[[Workload, Target], Iterable[Template]],
    workload: Workload,
    target: Target,
    rng: np.random.Generator,
    count: int = 4,
) -> None:
    """Some of the templates, from the first to the last, each with samples of its own seed, equal the reference, and
    are several kernels."""
    found = list(templates(workload, target))
    texts = set()
    for seed in range(count):
        template = found[seed * (len(found) - 1) // (count - 1)]
        apply = lambda *_, seed=seed, template=template: template.kernel(seed + 1)  # noqa: E731
        texts.add(str(check_anchor(apply, workload, target, rng, seed=seed).func))
    assert len(texts) > 1


def loop_bodies(lines: list[str], mnemonic: str) -> list[list[str]]:
    """The stretches between labels and jumps that hold ``mnemonic``, of an assembly text, the fullest first."""
    stretches: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"\s+[a-z]", line):
            stretches[-1].append(line)
        if re.match(r"\.LBB\w+:|\s+(j|b(\.\w+)?\s|[ct]bn?z)", line):
            stretches.append([])
    having = [body for body in stretches if any(mnemonic in line for line in body)]
    return sorted(having, key=lambda body: -sum(mnemonic in line for line in body))
