"""Lower: from layers, schemes and ranges to a ``Program``: one step per kernel call, with every number it takes.

Stands after assign and quantize, before schedule and build. Tensors live as float32 (or their own type) under their
name, and as int8 under ``name@int8``, in the target's storage: where instructions want unsigned activations the stored
byte is q + 128, and every zero point here carries that offset. Layers of dynamic schemes read ``name@rows`` and
``name@scales`` instead, each made once for all who do (``hwq.row_scales``). Conversions appear only where a producer
and a consumer differ; an int8 layer with weights whose consumers all want float writes float itself, and a transpose
whose consumers all want int8 (a picture's, at the network's input) is done by the quantize behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq.graph import ANCHORS, PASS_THROUGH, SPAN, STATE_OPS, Graph, Layer, Shape, data_tensors
from hwq.kernel_constants import kernel_constants, takes_bytes
from hwq.lengths import EXTRA, cut_steps
from hwq.masks import weighed_by
from hwq.numerics import QParams
from hwq.quantize import Weights
from hwq.schedules.generic.float_func import func_digest
from hwq.scheme import SCHEMES, Scheme
from hwq.target import Target
from hwq.workload import Workload

Array = npt.NDArray[Any]
FLOAT = "float32"
CONVERSIONS = ("quantize", "dequantize")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One kernel call: kernel(inputs..., constants..., output). ``workload`` None is a view (reshape), no kernel.

    name: the layer's, or "tensor:quantize", ":dequantize", ":row_scales" or ":quantize_rows". constants[weight] goes
    through the kernel's packing first.
    """

    name: str
    workload: Workload | None
    inputs: tuple[str, ...]
    output: str
    constants: tuple[Array, ...] = ()
    weight: int | None = None
    func: Any = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Steps in execution order over named values; ``values`` gives each value's shape and type.

    Where lengths vary (``hwq.lengths``) the inputs are followed by EXTRA, and kernels are cut to the tokens there are.
    state: values that live across calls: zero at first, and then what the steps that "append" to them have written.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, tuple[Shape, str]]
    steps: tuple[Step, ...]
    state: tuple[str, ...] = ()


def legal_schemes(graph: Graph, layer: Layer, target: Target, allowed: Sequence[Scheme]) -> tuple[str, ...]:
    """The schemes among ``allowed`` that ``target`` has a way to compute ``layer`` in; ("f32",) where there is none.

    A layer without weights knows int8 (named w8a8) and float only; int8 is open to it if any scheme of that domain is
    allowed. One that only passes values through may always be float: between float layers int8 would only cost it
    conversions. Any float scheme opens float32 to a layer that has no weights to multiply in another. A table of rows
    ("gather") may be of integers as wide as the weights of any scheme allowed. Attention that reads caches is float,
    and so is what has no data in it (``graph.data_tensors``), and what makes masks and scores (``hwq.masks``).
    """
    on_target = target.schemes_for(layer.op)
    if layer.op == "gather":
        return tuple(scheme for scheme in on_target if _table_allowed(SCHEMES[scheme], allowed)) or ("f32",)
    floating = [scheme.name for scheme in allowed if scheme.domain == "f32"]
    if layer.op in ANCHORS:
        floats = tuple(name for name in floating if name == "f32" or name in on_target)
    else:
        floats = ("f32",) if floating or layer.op in PASS_THROUGH else ()
    native = all(graph.dtypes[tensor] == FLOAT for tensor in (*layer.int8_inputs, layer.output))
    native = native and (layer.op in ANCHORS or bool(data_tensors(graph) & {*layer.int8_inputs}))
    native = native and (layer.op in ANCHORS or layer.output not in weighed_by(graph))
    native = native and (layer.op != "attention" or (SPAN not in layer.inputs and takes_bytes(layer)))
    clamped = layer.op in (*ANCHORS, "unary") or layer.activation.clamps
    integers: tuple[str, ...] = ()
    if native and clamped:
        integers = tuple(scheme.name for scheme in allowed if scheme.domain == "int8" and scheme.name in on_target)
        if layer.op not in ANCHORS and "w8a8" in on_target and any(scheme.domain == "int8" for scheme in allowed):
            integers = ("w8a8",)
    return (*floats, *integers) or ("f32",)


def _table_allowed(scheme: Scheme, allowed: Sequence[Scheme]) -> bool:
    """Whether a gather may be in ``scheme``: some other has weights as wide, or is as much without integers."""
    widths = {None if one.weight is None else one.weight.qtype.bits for one in allowed}
    return (None if scheme.weight is None else scheme.weight.qtype.bits) in widths


def convert_workload(op: str, shape: Shape, parallel: int, moved: Layer | None = None) -> Workload:
    """The border conversion to a tensor of ``shape``: op "quantize" (float32 to int8) or "dequantize".

    moved: a "transpose" that a quantize does on its way, from that layer's input shape.
    """
    return Workload(
        op=op,
        scheme="w8a8",
        input_shapes=(shape,) if moved is None else moved.input_shapes,
        output_shape=shape,
        attrs=() if moved is None else (("axes", tuple(moved.attrs["axes"])),),
        out_dtype="int8" if op == "quantize" else FLOAT,
        parallel=parallel,
    )


def row_workloads(shape: Shape, parallel: int) -> tuple[Workload, Workload]:
    """What makes scales and bytes of the rows of a float tensor of ``shape``: ops "row_scale" and "quantize_rows"."""
    scales = (math.prod(shape[:-1]),)
    return (
        Workload(
            op="row_scale",
            scheme="w8a8_dyn",
            input_shapes=(shape,),
            output_shape=scales,
            out_dtype=FLOAT,
            parallel=parallel,
        ),
        Workload(
            op="quantize_rows",
            scheme="w8a8_dyn",
            input_shapes=(shape, scales),
            output_shape=shape,
            out_dtype="int8",
            parallel=parallel,
        ),
    )


def layer_workload(layer: Layer, scheme: str, out_dtype: str, parallel: int) -> Workload | None:
    """The kernel that ``layer`` needs in ``scheme``; None for a view."""
    if layer.op == "reshape":
        return None
    # Integer weights have a bias, corrected for their rounding, where the layer has none.
    has_bias = layer.op in ANCHORS and (layer.bias is not None or SCHEMES[scheme].weight is not None)
    attrs = dict(layer.attrs)
    if layer.op == "float":  # a workload is the key of a compiled kernel, and holds no function
        attrs["func_digest"] = func_digest(layer.func)
    shapes = layer.input_shapes
    if SCHEMES[scheme].dynamic and layer.op == "dense":
        shapes = (shapes[0], (math.prod(shapes[0][:-1]),), *shapes[1:])
    return Workload(
        op=layer.op,
        scheme=scheme,
        input_shapes=shapes,
        output_shape=layer.output_shape,
        attrs=tuple(sorted(attrs.items())),
        activation=layer.activation,
        has_bias=has_bias,
        residual=layer.residual,
        float_residual=layer.float_residual and SCHEMES[scheme].domain == "int8",
        out_dtype=out_dtype,
        parallel=parallel,
    )


def writes_float(layer: Layer) -> bool:
    """Whether the integer kernel of ``layer`` can write float32 instead of int8.

    Depthwise ones do not: their fast kernels write bytes, and what packs for another would have other sizes.
    """
    return layer.op in ("conv2d", "dense", "attention") and layer.activation.clamps


def lower(
    graph: Graph,
    schemes: Mapping[str, str],
    qparams: Mapping[str, QParams],
    weights: Weights,
    target: Target,
    parallel: int,
    direct: bool = True,
) -> Program:
    """The program that runs ``graph`` with each layer in its scheme (a layer not named runs in f32).

    qparams holds, for each tensor that is int8 anywhere, its parameters, and under "layer:pre" those of the value in
    front of a table activation. weights holds the integer weights of each layer that has an integer scheme.
    """
    offset = target.activation_offset
    stored = target.activation_storage
    wants = _wanted_types(graph, schemes)
    values: dict[str, tuple[Shape, str]] = {name: (graph.shapes[name], graph.dtypes[name]) for name in graph.inputs}
    steps: list[Step] = []

    def convert(tensor: str, op: str, moved: Layer | None = None) -> None:
        source, result = (tensor, f"{tensor}@int8") if op == "quantize" else (f"{tensor}@int8", tensor)
        source = source if moved is None else moved.inputs[0]
        q = qparams[tensor]
        zero = np.array([q.zero_point + offset], np.int32)
        scale = np.array([1.0 / np.float64(q.scale) if op == "quantize" else q.scale], np.float32)
        shape = graph.shapes[tensor]
        values[result] = (shape, stored if op == "quantize" else FLOAT)
        steps.append(
            Step(
                name=f"{tensor}:{op}",
                workload=convert_workload(op, shape, parallel, moved),
                inputs=(source,),
                output=result,
                constants=(zero, scale),
            )
        )

    def by_rows(tensor: str) -> None:
        scale, quantize = row_workloads(graph.shapes[tensor], parallel)
        rows, scales = f"{tensor}@rows", f"{tensor}@scales"
        values[scales] = (scale.output_shape, FLOAT)
        values[rows] = (quantize.output_shape, stored)
        steps.append(Step(name=f"{tensor}:row_scales", workload=scale, inputs=(tensor,), output=scales))
        steps.append(Step(name=f"{tensor}:quantize_rows", workload=quantize, inputs=(tensor, scales), output=rows))

    def arrive(tensor: str) -> None:
        """After a tensor's first form exists, make the other one if somebody wants it."""
        if "int8" in wants[tensor] and f"{tensor}@int8" not in values:
            convert(tensor, "quantize")
        if FLOAT in wants[tensor] and tensor not in values:
            convert(tensor, "dequantize")
        if "rows" in wants[tensor]:
            by_rows(tensor)

    for tensor in graph.inputs:
        arrive(tensor)
    for layer in graph.layers:
        if layer.op == "transpose" and wants[layer.output] == {"int8"}:  # one pass over memory instead of two
            convert(layer.output, "quantize", layer)
            continue
        scheme = schemes.get(layer.name, "f32")
        integer = SCHEMES[scheme].domain == "int8"
        alone = direct and writes_float(layer) and "int8" not in wants[layer.output]
        to_float = integer and (layer.float_residual or alone)
        as_int8 = integer and not to_float
        read = _read(layer, SCHEMES[scheme])
        names = tuple(tensor if form == FLOAT else f"{tensor}@{form}" for tensor, form in read)
        output = f"{layer.output}@int8" if as_int8 else layer.output
        workload = layer_workload(layer, scheme, "int8" if as_int8 else FLOAT, parallel)
        constants, weight = kernel_constants(layer, scheme, qparams, weights, offset, to_float)
        values[output] = (layer.output_shape, stored if as_int8 else graph.dtypes[layer.output])
        steps.append(
            Step(
                name=layer.name,
                workload=workload,
                inputs=names,
                output=output,
                constants=constants,
                weight=weight,
                func=layer.func,
            )
        )
        arrive(layer.output)
    state = tuple(step.output for step in steps if step.workload is not None and step.workload.op in STATE_OPS)
    cut, known = cut_steps(steps, values)
    inputs = (*graph.inputs, *(name for name in EXTRA if name in known and name not in graph.inputs))
    return Program(inputs=inputs, outputs=graph.outputs, values=known, steps=cut, state=state)


def _read(layer: Layer, scheme: Scheme) -> tuple[tuple[str, str], ...]:
    """(tensor, form) of each of the layer's inputs, as its kernel takes them: in FLOAT, "int8", "rows" or "scales"."""
    converted = len(layer.int8_inputs) if scheme.domain == "int8" else 0
    forms = ["int8"] * converted + [FLOAT] * (len(layer.inputs) - converted)
    read = tuple(zip(layer.inputs, forms, strict=True))
    if scheme.dynamic and layer.op == "dense":
        return ((layer.inputs[0], "rows"), (layer.inputs[0], "scales"), *read[1:])
    return read


def _wanted_types(graph: Graph, schemes: Mapping[str, str]) -> dict[str, set[str]]:
    """For each tensor the forms in which its consumers, the caller included, want it; rows are made of float."""
    wants: dict[str, set[str]] = {tensor: set() for tensor in graph.shapes}
    for tensor in graph.outputs:
        wants[tensor].add(FLOAT)
    for layer in graph.layers:
        for tensor, form in _read(layer, SCHEMES[schemes.get(layer.name, "f32")]):
            wants[tensor] |= {form, FLOAT} if form in ("rows", "scales") else {form}
    return wants
