"""The layers that kernels are timed on, and how one becomes a program of one kernel.

ResNet-50's convolutions, one in groups, MobileNetV2's and EfficientNet's depthwise ones, products with weights that are
in no cache; pools, sums, tables, resizes, conversions, a network's input among them; softmax, layer norm, transpose.
Not there: slices, padding, and what TVM legalizes (``float_func``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwq.graph import ANCHORS, Activation, Graph, Layer, Shape
from hwq.lower import CONVERSIONS, Program, Step, convert_workload, lower
from hwq.numerics import QParams
from hwq.operators import linear_sources
from hwq.quantize import IntegerWeights, quantize_layer
from hwq.scheme import SCHEMES
from hwq.target import Target

NAME, OUT = "layer", "y"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One layer. home: where its weights are when it is called: "l2" (near the core) or "memory".

    What the project wants of it in w8a8. barred: the least share of VNNI's limit that all such cases have
    (``bench_kernels``). least_gmacs_amx: the GMAC/s on AMX; None: no bar there.
    """

    name: str
    op: str
    inputs: tuple[Shape, ...]
    output: Shape
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: Shape | None = None
    activation: Activation = field(default_factory=Activation)
    residual: bool = False
    home: str = "l2"
    barred: bool = False
    least_gmacs_amx: float | None = None


RELU = Activation(kind="relu")
RELU6 = Activation(kind="clip", lo=0.0, hi=6.0)


def _window(kernel: int, stride: int, pad: int | None = None) -> dict[str, Any]:
    around = (kernel // 2 if pad is None else pad,) * 4
    return {"kernel": (kernel, kernel), "strides": (stride, stride), "padding": around, "dilation": (1, 1)}


def _conv(
    size: int,
    depth: int,
    out: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    residual: bool = False,
    least: float | None = None,
) -> Case:
    side = (size - 1) // stride + 1
    shape = (1, side, side, out)
    more = (f" {groups} groups" if groups > 1 else "") + (" +residual" if residual else "")
    return Case(
        name=f"conv2d {size}x{size}x{depth}->{out} {kernel}x{kernel}/{stride}{more}",
        op="conv2d",
        inputs=((1, size, size, depth), *((shape,) if residual else ())),
        output=shape,
        attrs=_window(kernel, stride) | {"groups": groups},
        weight=(out, kernel, kernel, depth // groups),
        activation=RELU,
        residual=residual,
        barred=groups == 1,
        least_gmacs_amx=least,
    )


def _depthwise(size: int, channels: int, kernel: int, stride: int = 1) -> Case:
    side = (size - 1) // stride + 1
    return Case(
        name=f"depthwise_conv2d {size}x{size}x{channels} {kernel}x{kernel}/{stride}",
        op="depthwise_conv2d",
        inputs=((1, size, size, channels),),
        output=(1, side, side, channels),
        attrs=_window(kernel, stride) | {"groups": channels},
        weight=(channels, kernel, kernel, 1),
        activation=RELU6,
    )


def _dense(rows: int, depth: int, out: int, home: str = "l2") -> Case:
    return Case(
        name=f"dense {rows}x{depth}->{out}{' weights in memory' if home == 'memory' else ''}",
        op="dense",
        inputs=((rows, depth),),
        output=(rows, out),
        weight=(out, depth),
        home=home,
    )


def _pool(op: str, size: int, channels: int, kernel: int, stride: int, pad: int) -> Case:
    side = (size + 2 * pad - kernel) // stride + 1
    attrs = _window(kernel, stride, pad) | {"count_include_pad": False}
    name = f"{op} {size}x{size}x{channels} {kernel}x{kernel}/{stride}"
    return Case(name=name, op=op, inputs=((1, size, size, channels),), output=(1, side, side, channels), attrs=attrs)


def _elementwise(op: str, size: int, channels: int, kind: str = "none") -> Case:
    shape = (1, size, size, channels)
    named = "" if kind == "none" else f" {kind}"
    inputs = (shape,) if op == "unary" else (shape, shape)
    return Case(
        name=f"{op}{named} {size}x{size}x{channels}",
        op=op,
        inputs=inputs,
        output=shape,
        activation=Activation(kind=kind),
    )


def _resize(op: str, size: int, channels: int) -> Case:
    """To twice the size."""
    places = tuple(at // 2 for at in range(2 * size))
    return Case(
        name=f"{op} {size}x{size}x{channels}->{2 * size}",
        op=op,
        inputs=((1, size, size, channels),),
        output=(1, 2 * size, 2 * size, channels),
        attrs={"map_h": places, "map_w": places} if op == "resize_nearest" else {},
    )


def _moved(op: str, shape: Shape, axes: tuple[int, ...]) -> Case:
    output = tuple(shape[axis] for axis in axes)
    name = f"{op} {'x'.join(map(str, shape))} to {'x'.join(map(str, output))}"
    return Case(name=name, op=op, inputs=(shape,), output=output, attrs={"axes": axes})


def _plain(op: str, shape: Shape, **attrs: Any) -> Case:
    return Case(name=f"{op} {'x'.join(map(str, shape))}", op=op, inputs=(shape,), output=shape, attrs=attrs)


def _concat(size: int, channels: int) -> Case:
    shape = (1, size, size, channels)
    return Case(
        name=f"concat {size}x{size}x2*{channels}",
        op="concat",
        inputs=(shape, shape),
        output=(1, size, size, 2 * channels),
        attrs={"axis": 3},
    )


CASES = (
    # ResNet-50, in the order of its layers
    _conv(224, 3, 64, 7, 2),
    _conv(56, 64, 64, 1, least=1300),
    _conv(56, 64, 64, 3, least=1300),
    _conv(56, 64, 256, 1, least=700),
    _conv(56, 64, 256, 1, residual=True),
    _conv(56, 256, 64, 1, least=1300),
    _conv(56, 256, 128, 1, least=1300),
    _conv(56, 128, 128, 3, 2),
    _conv(56, 256, 512, 1, 2),
    _conv(28, 128, 512, 1, least=1300),
    _conv(28, 512, 128, 1, least=1300),
    _conv(28, 128, 128, 3, least=1300),
    _conv(28, 512, 256, 1, least=1300),
    _conv(28, 256, 256, 3, 2),
    _conv(28, 512, 1024, 1, 2),
    _conv(14, 256, 1024, 1, least=1300),
    _conv(14, 1024, 256, 1, least=1300),
    _conv(14, 256, 256, 3, least=1300),
    _conv(14, 1024, 512, 1, least=1300),
    _conv(14, 512, 512, 3, 2),
    _conv(14, 1024, 2048, 1, 2),
    _conv(7, 512, 2048, 1, least=1300),
    _conv(7, 2048, 512, 1, least=1300),
    _conv(7, 512, 512, 3, least=1300),
    # ResNeXt-50
    _conv(56, 128, 128, 3, groups=32),
    # MobileNetV2, and 5x5 of EfficientNet
    *(_depthwise(112, 32, 3), _depthwise(112, 96, 3, 2), _depthwise(56, 144, 3), _depthwise(56, 144, 3, 2)),
    *(_depthwise(28, 192, 3), _depthwise(28, 192, 3, 2), _depthwise(14, 384, 3), _depthwise(14, 576, 3)),
    *(_depthwise(14, 576, 3, 2), _depthwise(7, 960, 3)),
    *(_depthwise(56, 144, 5, 2), _depthwise(28, 240, 5), _depthwise(14, 672, 5), _depthwise(14, 672, 5, 2)),
    *(_depthwise(7, 1152, 5),),
    # Products
    *(_dense(1, 2048, 1000), *(_dense(rows, 4096, 4096, "memory") for rows in (1, 16, 128))),
    # Without weights
    *(_pool("max_pool2d", 112, 64, 3, 2, 1), _pool("avg_pool2d", 7, 2048, 7, 1, 0)),
    *(_elementwise("add", 56, 256), _elementwise("add", 14, 1024), _elementwise("multiply", 28, 240)),
    *(_elementwise("unary", 28, 192, "sigmoid"), _elementwise("unary", 14, 672, "hard_swish")),
    *(_concat(55, 64), _resize("resize_nearest", 28, 64), _resize("resize_linear", 28, 64)),
    *(_moved("quantize", (1, 3, 224, 224), (0, 2, 3, 1)), _plain("quantize", (1, 56, 56, 256))),
    *(_plain("dequantize", (1, 7, 7, 2048)), _moved("transpose", (1, 64, 56, 56), (0, 2, 3, 1))),
    *(_plain("softmax", (12, 128, 128), axis=-1), _plain("layer_norm", (1, 128, 768), epsilon=1e-5)),
)


def schemes_of(case: Case, target: Target) -> tuple[str, ...]:
    """The schemes ``target`` has kernels for; without weights all integer schemes are one, conversions' too."""
    if case.op in CONVERSIONS:
        return ("w8a8",)
    able = target.schemes_for(case.op)
    return able if case.op in ANCHORS else tuple(scheme for scheme in able if scheme in ("f32", "w8a8"))


def program_of(case: Case, scheme: str, target: Target, threads: int, *, direct: bool = False) -> tuple[Program, Step]:
    """A network of this one layer in ``scheme``, and the layer's step in it; made-up weights, bytes in and out.

    direct: an integer layer that can writes float out itself.
    """
    if case.op in CONVERSIONS:
        return _conversion(case, target, threads)
    rng = np.random.default_rng(0)
    names = tuple(f"x{i}" for i in range(len(case.inputs)))
    weight = bias = None
    if case.weight is not None:
        weight = rng.normal(0.0, 1.0, case.weight).astype(np.float32)
        bias = rng.normal(0.0, 0.1, case.weight[0]).astype(np.float32)
    layer = Layer(
        name=NAME,
        op=case.op,
        inputs=names,
        output=OUT,
        input_shapes=case.inputs,
        output_shape=case.output,
        attrs=case.attrs,
        weight=weight,
        bias=bias,
        activation=case.activation,
        residual=case.residual,
        constants=_constants(case),
    )
    shapes = dict(zip(names, case.inputs, strict=True)) | {OUT: case.output}
    graph = Graph(inputs=names, outputs=(OUT,), shapes=shapes, dtypes=dict.fromkeys(shapes, "float32"), layers=(layer,))
    same = QParams(scale=0.05, zero_point=-3)
    weights: dict[tuple[str, str], IntegerWeights] = {}
    if weight is not None and SCHEMES[scheme].weight is not None:
        weights[NAME, scheme] = quantize_layer(layer, scheme, same)
    program = lower(graph, {NAME: scheme}, dict.fromkeys(shapes, same), weights, target, threads, direct)
    (step,) = (step for step in program.steps if step.name == NAME)
    return program, step


def _constants(case: Case) -> tuple[Any, ...]:
    """The constant arguments of a layer without weights."""
    if case.op == "layer_norm":
        return (np.ones(case.output[-1], np.float32), np.zeros(case.output[-1], np.float32))
    if case.op == "resize_linear":
        sources = [linear_sources(case.inputs[0][axis], case.output[axis], "half_pixel") for axis in (1, 2)]
        return tuple(part for source in sources for part in source)
    return ()


def _conversion(case: Case, target: Target, threads: int) -> tuple[Program, Step]:
    """``program_of`` a conversion between float32 and bytes, which is no layer."""
    (shape,) = case.inputs
    moved = Layer(
        name=NAME,
        op="transpose",
        inputs=("x0",),
        output=OUT,
        input_shapes=case.inputs,
        output_shape=case.output,
        attrs=case.attrs,
    )
    workload = convert_workload(case.op, case.output, threads, moved if case.attrs else None)
    types = ("float32", target.activation_storage)
    read, written = types if case.op == "quantize" else types[::-1]
    constants = (np.array([3 + target.activation_offset], np.int32), np.array([0.05], np.float32))
    step = Step(name=NAME, workload=workload, inputs=("x0",), output=OUT, constants=constants)
    values = {"x0": (shape, read), OUT: (case.output, written)}
    return Program(inputs=("x0",), outputs=(OUT,), values=values, steps=(step,)), step
