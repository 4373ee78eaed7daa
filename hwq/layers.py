"""From a prepared Relax module to the ``Graph`` of layers that every later stage works on.

Stands after ``hwq.pipeline``. Each call becomes a layer; a constant addition becomes the bias, an addition of tensors
the residual, an activation the epilogue of the anchor before it. What has no place in ``hwq.graph`` becomes a "float"
layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from tvm import IRModule, ir, relax

from hwq import relax_tools as rt
from hwq.errors import HwqError
from hwq.float_ops import NoKernelError, float_layers
from hwq.graph import ANCHORS, TRANSFORMER_OPS, Activation, Graph, Layer
from hwq.layer_names import VIEWS, name_layers
from hwq.layer_ops import activation_of, channel_values, layer_of
from hwq.tables import with_one_of_each
from hwq.ties import with_float_residuals

# Operators that bear their ONNX node's name; reshapes and transposes that the passes put beside them do not.
_NAMED = ("nn.conv2d", "matmul", "nn.max_pool2d", "nn.avg_pool2d", "mean", "max", "take")
# Operators without weights that may clamp at their end.
_CLAMPING = ("add", "multiply", "avg_pool2d")


@dataclass(slots=True, kw_only=True)
class _Found:
    """The layers found so far by the tensor each writes, in order, and which tensors a variable is."""

    mod: IRModule
    uses: dict[rt.Expr, int]
    layers: dict[str, Layer] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    tensors: dict[rt.Expr, str] = field(default_factory=dict)
    tuples: dict[rt.Expr, list[str]] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    named: frozenset[str] = frozenset()
    refused: Counter[str] = field(default_factory=Counter)

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it where a tensor has it already."""
        candidate = name
        while self.taken[candidate]:
            self.taken[name] += 1
            candidate = f"{name}:{self.taken[name]}"
        self.taken[candidate] += 1
        return candidate

    def open_layer(self, var: rt.Expr) -> Layer | None:
        """The layer that writes ``var``, if nothing but one reader sees its result: it can take that reader in."""
        if not isinstance(var, relax.Var) or self.uses.get(var, 0) != 1:
            return None
        return self.layers.get(self.tensors.get(var, ""))

    def position(self, var: rt.Expr) -> int:
        name = self.tensors[var]
        return list(self.layers).index(name) if name in self.layers else -1


def find_layers(mod: IRModule) -> Graph:
    """The graph of a module that went through ``hwq.pipeline.run``.

    Raises HwqError "model-unsupported" listing every operator for which TVM has no kernel.
    """
    main = mod["main"]
    bindings = rt.bindings_of(mod)
    named = frozenset(rt.origin(value) for _, value in bindings if rt.op_name(value) in _NAMED)
    found = _Found(mod=mod, uses=rt.count_uses(mod), named=named)
    for param in main.params:
        found.tensors[param] = found.unique(str(param.name))
        found.dtypes[found.tensors[param]] = rt.dtype_of(param)
    for var, value in bindings:
        if isinstance(value, relax.Var):
            found.tensors[var] = found.tensors[value]
        elif isinstance(value, relax.TupleGetItem):
            found.tensors[var] = found.tuples[value.tuple_value][value.index]
        elif not _fuse(found, var, value):
            _append(found, var, value)
    if found.refused:
        listed = ", ".join(f"{op} ({count})" for op, count in sorted(found.refused.items()))
        raise HwqError(
            "model-unsupported",
            f"operators for which TVM has no kernel: {listed}; accepted: operators that it can lower",
        )
    result = main.body.body
    outputs = tuple(found.tensors[item] for item in (result.fields if isinstance(result, ir.Tuple) else [result]))
    layers = with_one_of_each(found.layers.values())
    inputs = tuple(found.tensors[param] for param in main.params)
    shapes = {found.tensors[param]: rt.shape_of(param) for param in main.params}
    shapes.update({layer.output: layer.output_shape for layer in layers})
    dtypes = {name: found.dtypes[name] for name in shapes}
    graph = Graph(inputs=inputs, outputs=outputs, shapes=shapes, dtypes=dtypes, layers=layers)
    return with_float_residuals(name_layers(graph))


def _append(found: _Found, var: rt.Expr, value: rt.Expr) -> None:
    """A new layer for a call."""
    name = rt.origin(value) or rt.op_name(value).replace(".", "_") or "layer"
    layer = layer_of(found.mod, value, name, found.tensors)
    if layer is not None and rt.op_name(value) in ("add", "multiply") and layer.weight is not None:
        layer = layer if _of_picture(found, layer) else None
    if layer is not None:
        if layer.op in VIEWS and (
            rt.MODULE in name or (layer.op != "slice" and (not rt.origin(value) or name in found.named))
        ):
            name = f"{layer.inputs[0]}:{layer.op}"
        output = found.unique(name)
        found.layers[output] = replace(layer, name=output, output=output)
        found.dtypes[output] = rt.dtype_of(value)
        found.tensors[var] = output
        return
    try:
        made = float_layers(found.mod, value, name, found.tensors, found.unique)
    except NoKernelError:
        found.refused[rt.op_name(value) or "call"] += 1
        found.tensors[var] = found.unique(name)
        fields = value.ty.fields if isinstance(value.ty, relax.TupleType) else []
        found.tuples[var] = [found.tensors[var] for _ in fields]
        return
    found.layers.update({layer.output: layer for layer in made.layers})
    found.dtypes.update(made.dtypes)
    if isinstance(value.ty, relax.TupleType):
        found.tuples[var] = made.results
    else:
        found.tensors[var] = made.results[0]


def _of_picture(found: _Found, layer: Layer) -> bool:
    """Whether the 4-d tensor that a layer of one constant a channel reads is a picture: a depthwise convolution serves
    those. The scores of attention, masks, and heads are none; one constant for all channels is taken for a mask's where
    its tensor had another rank before.
    """
    assert layer.weight is not None
    constants = layer.weight if layer.bias is None else layer.bias
    tensor = layer.inputs[0]
    while tensor in found.layers:
        source = found.layers[tensor]
        if source.op in ("dense", *TRANSFORMER_OPS) or source.attrs.get("operator") == "matmul":
            return False
        if source.op in ANCHORS or source.op.endswith("pool2d"):
            return True
        if len({len(shape) for shape in (source.input_shapes[0], source.output_shape)}) > 1 and np.ptp(constants) == 0:
            return False
        tensor = source.inputs[0]
    return True


def _fuse(found: _Found, var: rt.Expr, value: rt.Expr) -> bool:
    """Take a call into the layer before it, where it fits there."""
    activation = activation_of(found.mod, value)
    if activation is not None:
        return _fuse_activation(found, var, value, activation)
    fuse = _FUSERS.get(rt.op_name(value))
    return fuse is not None and fuse(found, var, value)


def _update(found: _Found, var: rt.Expr, layer: Layer, *, last: bool = False) -> bool:
    """Put the grown ``layer`` in the place of the old one, or last; ``var`` is what it writes now."""
    if last:
        del found.layers[layer.output]
    found.layers[layer.output] = layer
    found.tensors[var] = layer.output
    return True


def _fuse_activation(found: _Found, var: rt.Expr, value: rt.Expr, activation: Activation) -> bool:
    layer = found.open_layer(value.args[0])
    if layer is None or layer.activation.kind != "none":
        return False
    if layer.op in ANCHORS or (layer.op in _CLAMPING and activation.clamps):
        return _update(found, var, replace(layer, activation=activation))
    return False


def _fuse_add(found: _Found, var: rt.Expr, value: rt.Expr) -> bool:
    """A constant becomes the bias; another tensor the residual of the later of the two anchors."""
    out = rt.shape_of(value)
    left, right = value.args
    for data, other in ((left, right), (right, left)):
        channels = channel_values(other, out)
        layer = found.open_layer(data)
        if channels is None or layer is None or not _bare(layer) or layer.output_shape != out:
            continue
        bias = channels if layer.bias is None else layer.bias + channels
        return _update(found, var, replace(layer, bias=bias))
    if rt.is_const(left) or rt.is_const(right) or rt.shape_of(left) != out or rt.shape_of(right) != out:
        return False
    pairs = sorted(((left, right), (right, left)), key=lambda pair: -found.position(pair[0]))
    for data, other in pairs:
        layer = found.open_layer(data)
        if layer is None or not _bare(layer) or data.same_as(other):
            continue
        residual = found.tensors[other]
        grown = replace(layer, inputs=(*layer.inputs, residual), input_shapes=(*layer.input_shapes, out), residual=True)
        # The residual may be computed after the anchor; then the anchor waits for it.
        return _update(found, var, grown, last=found.position(other) > found.position(data))
    return False


def _bare(layer: Layer) -> bool:
    return layer.op in ANCHORS and not layer.residual and layer.activation.kind == "none"


def _fuse_resize(found: _Found, var: rt.Expr, value: rt.Expr) -> bool:
    """Rows and columns of one nearest resizing."""
    layer = found.open_layer(value.args[0])
    if layer is None or layer.op != "resize_nearest":
        return False
    after = layer_of(found.mod, value, layer.name, found.tensors)
    if after is None:
        return False
    attrs = {key: tuple(layer.attrs[key][item] for item in after.attrs[key]) for key in ("map_h", "map_w")}
    return _update(found, var, replace(layer, attrs=attrs, output_shape=after.output_shape))


_FUSERS: dict[str, Callable[[_Found, rt.Expr, rt.Expr], bool]] = {"add": _fuse_add, "take": _fuse_resize}
