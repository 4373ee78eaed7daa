"""Layers to train prices on: shapes drawn at random as common networks have them, and the kernels that each needs.

A draw is a layer (op, size, channels, window, activation), one to three schemes, a number of threads, and where its
weights are. Sizes and channels are those of the picture networks of the last ten years and of small ones for
microcontrollers, mixed freely, so that no network's own layers are in it more than by chance.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwq.graph import ANCHORS, Activation
from hwq.lower import CONVERSIONS, Program, Step
from hwq.target import Target

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from kernel_cases import RELU, RELU6, Case, program_of, schemes_of

SIZES = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    10,
    12,
    14,
    15,
    16,
    20,
    24,
    28,
    30,
    32,
    40,
    48,
    56,
    60,
    64,
    80,
    96,
    112,
    120,
    128,
    160,
    224,
)
CHANNELS = (
    *(8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 88, 96, 112, 120, 128, 144, 160, 184, 192, 200, 240, 256),
    *(288, 320, 336, 384, 448, 480, 512, 576, 640, 672, 728, 768, 864, 960, 1024, 1152, 1280, 1536, 2048),
)
# Of all draws, how many are of each operator: convolutions are what networks spend their time in.
SHARES = {
    **{"conv2d": 0.46, "depthwise_conv2d": 0.17, "dense": 0.11, "max_pool2d": 0.04, "avg_pool2d": 0.05, "add": 0.05},
    **{"multiply": 0.02, "unary": 0.04, "concat": 0.03, "softmax": 0.01, "transpose": 0.02},
}
ACTIVATIONS = (
    *("none",) * 4, *("relu",) * 6, *("clip",) * 4, "hard_swish", "silu", "gelu", "sigmoid",
)  # fmt: skip
# The most work of one layer: 10 ms in float on one core. The largest activation that is drawn, in elements.
MOST_MACS = 4e8
MOST_ELEMENTS = 3e6
# How often a layer's input conversion, and its output's, are timed too.
CONVERSION_SHARE = 0.15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One kernel to time: the step of ``program``, with its weights in ``home``, on ``threads``."""

    program: Program
    step: Step
    home: str
    threads: int


def jobs(count: int, target: Target, seed: int = 0) -> Iterator[Job]:
    """The kernels of ``count`` draws. Same arguments, same kernels."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        case = draw(rng)
        threads = 1 if target.cores == 1 or rng.random() < 0.65 else 2
        home = str(rng.choice(["l2", "l2", "l3", "memory"])) if case.op in ANCHORS else "l2"
        able = schemes_of(case, target)
        for scheme in sorted(rng.choice(able, size=min(len(able), 2 + (rng.random() < 0.4)), replace=False)):
            direct = bool(rng.random() < 0.15)
            program, step = program_of(case, str(scheme), target, threads, direct=direct)
            yield Job(program=program, step=step, home=home, threads=threads)
            for other in program.steps:
                converts = other.workload is not None and other.workload.op in CONVERSIONS
                if converts and rng.random() < CONVERSION_SHARE:
                    yield Job(program=program, step=other, home="l2", threads=threads)
        if case.op == "transpose":
            program, step = program_of(replace(case, op="quantize"), "w8a8", target, threads)
            yield Job(program=program, step=step, home="l2", threads=threads)


def draw(rng: np.random.Generator) -> Case:
    """One layer of at most MOST_MACS and MOST_ELEMENTS."""
    op = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    while True:
        case = _draw(op, rng)
        elements = max(float(np.prod(shape)) for shape in (*case.inputs, case.output))
        macs = float(np.prod(case.output)) * (1 if case.weight is None else float(np.prod(case.weight[1:])))
        # Small ones are most of the draws of sizes and channels, but as many of every order of magnitude are wanted.
        if elements <= MOST_ELEMENTS and macs <= MOST_MACS and rng.random() < (macs / MOST_MACS) ** 0.12:
            return case


def _draw(op: str, rng: np.random.Generator) -> Case:
    size, other = (int(value) for value in rng.choice(SIZES, 2))
    width = size if rng.random() < 0.85 else other
    channels, out = (int(value) for value in rng.choice(CHANNELS, 2))
    if rng.random() < 0.08:
        channels, out = int(rng.integers(1, 300)), int(rng.integers(1, 300))
    activation = _activation(str(rng.choice(ACTIVATIONS)))
    shape = (1, size, width, channels)
    if op in ("conv2d", "depthwise_conv2d"):
        return _convolution(op, shape, out, activation, rng)
    if op == "dense":
        rows = int(rng.choice([1, 1, 1, 1, 2, 4, 8, 16, 32, 64, 128]))
        return Case(
            name=op,
            op=op,
            inputs=((rows, channels),),
            output=(rows, out),
            weight=(out, channels),
            activation=activation,
        )
    if op in ("max_pool2d", "avg_pool2d"):
        return _pool(op, shape, rng)
    if op == "concat":
        both = ((*shape[:3], channels), (*shape[:3], out))
        return Case(name=op, op=op, inputs=both, output=(*shape[:3], channels + out), attrs={"axis": 3})
    if op == "softmax":
        flat = (int(rng.choice([1, 8, 64, 128])), channels)
        return Case(name=op, op=op, inputs=(flat,), output=flat, attrs={"axis": 1})
    if op == "transpose":
        few = int(rng.choice([1, 3, 3, 3, 16, 64]))
        return Case(
            name=op, op=op, inputs=((1, few, size, width),), output=(1, size, width, few), attrs={"axes": (0, 2, 3, 1)}
        )
    if op == "unary":
        kind = str(rng.choice(["sigmoid", "hard_swish", "silu", "tanh", "leaky_relu"]))
        return Case(name=op, op=op, inputs=(shape,), output=shape, activation=_activation(kind))
    clamp = activation if activation.clamps else RELU
    return Case(name=op, op=op, inputs=(shape, shape), output=shape, activation=clamp)


def _activation(kind: str) -> Activation:
    if kind == "clip":
        return RELU6
    return Activation(kind=kind, alpha=0.1) if kind == "leaky_relu" else Activation(kind=kind)


def _convolution(op: str, shape: tuple[int, ...], out: int, activation: Activation, rng: np.random.Generator) -> Case:
    _, height, width, channels = shape
    depthwise = op == "depthwise_conv2d"
    kernel = int(rng.choice([3, 3, 3, 5, 7] if depthwise else [1, 1, 1, 1, 3, 3, 3, 5, 7]))
    stride = int(rng.choice([1, 1, 1, 2]))
    if not depthwise and rng.random() < 0.05:  # a first layer
        channels = int(rng.choice([1, 3]))
    out = channels if depthwise else out
    result = (1, (height - 1) // stride + 1, (width - 1) // stride + 1, out)
    residual = not depthwise and bool(rng.random() < 0.2)
    attrs = {"kernel": (kernel, kernel), "strides": (stride, stride), "padding": (kernel // 2,) * 4, "dilation": (1, 1)}
    return Case(
        name=op,
        op=op,
        inputs=((1, height, width, channels), *((result,) if residual else ())),
        output=result,
        attrs=attrs | {"groups": channels if depthwise else 1},
        weight=(out, kernel, kernel, 1 if depthwise else channels),
        activation=activation,
        residual=residual,
    )


def _pool(op: str, shape: tuple[int, ...], rng: np.random.Generator) -> Case:
    _, height, width, channels = shape
    everything = op == "avg_pool2d" and bool(rng.random() < 0.5)
    kernel = (height, width) if everything else (min(height, 3), min(width, 3)) if rng.random() < 0.5 else (2, 2)
    if min(height, width) < 2:
        kernel = (1, 1)
    stride = (1, 1) if everything else (2, 2)
    result = (1, (height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1, channels)
    attrs = {"kernel": kernel, "strides": stride, "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    return Case(name=op, op=op, inputs=(shape,), output=result, attrs=attrs | {"count_include_pad": False})


def alone(job: Job) -> Program:
    """The job's program without its other steps, to compile."""
    return replace(job.program, steps=(job.step,))
