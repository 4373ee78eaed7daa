"""Convolutions, depthwise ones and products, alone, on this machine: GMAC/s in each scheme, and the share of its rate.

    python benchmarks/bench_anchors.py [--threads N] [w8a8 w4a8 f32]

The rate is the target's: macs_per_cycle times clock_hz, times the threads.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import tvm

from hwq.schedule import kernel_for
from hwq.target import Target
from hwq.threads import use_threads
from hwq.workload import Workload

# (operator, height and width, input channels, output channels, kernel, stride): ResNet-50's main layers, its ends,
# MobileNetV2's depthwise ones, and two matrices.
LAYERS = (
    ("conv2d", 224, 3, 64, 7, 2),
    ("conv2d", 56, 64, 64, 3, 1),
    ("conv2d", 56, 64, 256, 1, 1),
    ("conv2d", 56, 256, 64, 1, 1),
    ("conv2d", 28, 128, 128, 3, 1),
    ("conv2d", 28, 512, 128, 1, 1),
    ("conv2d", 14, 256, 256, 3, 1),
    ("conv2d", 14, 1024, 256, 1, 1),
    ("conv2d", 7, 512, 512, 3, 1),
    ("conv2d", 7, 2048, 512, 1, 1),
    ("depthwise_conv2d", 112, 32, 32, 3, 1),
    ("depthwise_conv2d", 112, 96, 96, 3, 2),
    ("depthwise_conv2d", 28, 192, 192, 3, 1),
    ("depthwise_conv2d", 14, 576, 576, 3, 1),
    ("depthwise_conv2d", 7, 960, 960, 3, 1),
    ("dense", 1, 2048, 1000, 1, 1),
    ("dense", 128, 768, 768, 1, 1),
)


def workload_of(scheme: str, layer: tuple[str, int, int, int, int, int], threads: int) -> Workload:
    """The layer with bias, without an activation; a dense layer's size is its batch."""
    op, size, in_c, out_c, kernel, stride = layer
    if op == "dense":
        shapes, attrs = ((size, in_c), (size, out_c)), {}
    else:
        side = (size - 1) // stride + 1
        shapes = ((1, size, size, in_c), (1, side, side, out_c))
        attrs = {"kernel": (kernel, kernel), "strides": (stride, stride), "dilation": (1, 1)}
        attrs["padding"] = (kernel // 2,) * 4
        attrs |= {"groups": 1} if op == "conv2d" else {}
    out = "float32" if scheme == "f32" else "int8"
    return Workload(
        op=op,
        scheme=scheme,
        input_shapes=(shapes[0],),
        output_shape=shapes[1],
        attrs=tuple(sorted(attrs.items())),
        has_bias=True,
        out_dtype=out,
        parallel=threads,
    )


def seconds(workload: Workload, target: Target) -> float:
    """The best of many runs on zeros: what is multiplied does not matter to the time."""
    kernel = kernel_for(workload, target)
    library = tvm.compile(tvm.IRModule({kernel.symbol: kernel.func}), target.tvm())
    arguments = [np.zeros([int(size) for size in param.ty.shape], str(param.ty.dtype)) for param in kernel.func.params]
    timer = library.mod.time_evaluator(kernel.symbol, tvm.cpu(), number=3, repeat=15, min_repeat_ms=2)
    return float(min(timer(*(tvm.runtime.tensor(argument) for argument in arguments)).results))


def main() -> None:
    """Prints one line a layer and scheme."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schemes", nargs="*", default=["w8a8", "w4a8", "f32"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    target = Target.load("host")
    use_threads(args.threads)
    weights = {"w8a8": "int8", "w4a8": "int4", "f32": "float32"}
    for layer in LAYERS:
        op, size, in_c, out_c, kernel, _ = layer
        for scheme in args.schemes:
            workload = workload_of(scheme, layer, args.threads)
            taken = seconds(workload, target)
            terms = kernel * kernel * (1 if op == "depthwise_conv2d" else in_c)
            macs_per_s = math.prod(workload.output_shape) * terms / taken
            row = target.instruction(op, weights[scheme], "float32" if scheme == "f32" else "int8")
            rate = row.macs_per_cycle * target.clock_hz * args.threads if row else math.inf
            shape = f"{op} {size}x{in_c}->{out_c} {kernel}x{kernel}"
            print(
                f"{shape:36} {scheme:5} {macs_per_s / 1e9:7.1f} GMAC/s {macs_per_s / rate:6.1%} {taken * 1e6:9.1f} us"
            )


if __name__ == "__main__":
    main()
