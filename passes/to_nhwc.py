"""Channels last for every operator on 4-d tensors; the transposes between them fall away.

Before:  lv = R.nn.conv2d(x, w); gv = R.nn.relu(lv)                                      all NCHW
After:   lv = R.permute_dims(x, [0, 2, 3, 1])
         lv1 = R.nn.conv2d(lv, w', data_layout="NHWC", kernel_layout="OHWI"); lv2 = R.nn.relu(lv1)
         gv = R.permute_dims(lv2, [0, 3, 1, 2])

Stands after fold_padding; run once. Each rewritten operator yields its NCHW form through a transpose that its readers
look through, so that a transpose remains only where something truly needs the NCHW order: at the network's border, or
before an operator that this pass does not know, which keeps working on NCHW.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
# Where each NCHW axis lies in NHWC.
_AXIS = (0, 3, 1, 2)

_UNARY = (
    *("nn.relu", "nn.relu6", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.softplus", "nn.selu", "clip"),
    *("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "negative", "erf", "round", "floor", "ceil", "sign"),
    *("square", "astype"),
)
_BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")
_REDUCE = ("mean", "max", "min", "sum")


@module_pass(opt_level=0, name="ToNHWC")
@dataclass(frozen=True)
class ToNHWC:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        state = _Layouts()
        return rt.rewrite(mod, state.rule, repeat=False)


@dataclass(slots=True)
class _Layouts:
    """The NHWC form of each NCHW variable that was asked for, for one run of the pass."""

    nhwc: dict[rt.Expr, rt.Expr] = field(default_factory=dict)

    def rule(self, value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
        op = rt.op_name(value)
        if isinstance(value, ir.Call) and isinstance(value.op, ir.GlobalVar):  # an activation, of any shape
            known = _known_nhwc(value.args[0], scope)
            return None if known is None else relax.op.permute_dims(scope.emit(ir.Call(value.op, [known])), TO_NCHW)
        if op == "permute_dims":
            return self._permute(value, scope)
        if op == "reshape":
            return _reshape(value, scope)
        if op in ("nn.conv2d", "nn.max_pool2d", "nn.avg_pool2d", "image.resize2d"):
            out = self._anchor(op, value, scope)
        elif op in _UNARY or op in _BINARY:
            out = self._elementwise(op, value, scope)
        elif op in _REDUCE:
            return self._reduce(value, scope)
        else:
            out = self._moved_axes(op, value, scope)
        return None if out is None else relax.op.permute_dims(scope.emit(out), TO_NCHW)

    def form(self, data: rt.Expr, scope: rt.Scope) -> rt.Expr:
        """``data`` (N, C, H, W) as (N, H, W, C), through a transpose where there is no such tensor yet."""
        if data not in self.nhwc:
            known = _known_nhwc(data, scope)
            self.nhwc[data] = known if known is not None else scope.emit(relax.op.permute_dims(data, TO_NHWC), "")
        return self.nhwc[data]

    def _anchor(self, op: str, value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
        attrs, data = value.attrs, value.args[0]
        if op == "nn.conv2d":
            if attrs.data_layout != "NCHW" or attrs.kernel_layout != "OIHW" or not rt.is_const(value.args[1]):
                return None
            weight = rt.const(rt.value_of(value.args[1]).transpose(0, 2, 3, 1))
            return relax.op.nn.conv2d(
                self.form(data, scope),
                weight,
                attrs.strides,
                attrs.padding,
                attrs.dilation,
                int(attrs.groups),
                "NHWC",
                "OHWI",
            )
        if attrs.layout != "NCHW":
            return None
        if op == "image.resize2d":
            return relax.op.image.resize2d(
                self.form(data, scope), value.args[1], [float(item) for item in attrs.roi], "NHWC", attrs.method,
                attrs.coordinate_transformation_mode,
                attrs.rounding_method, attrs.cubic_alpha, attrs.cubic_exclude, attrs.extrapolation_value,
            )  # fmt: skip
        make = relax.op.nn.max_pool2d if op == "nn.max_pool2d" else relax.op.nn.avg_pool2d
        return make(
            self.form(data, scope), attrs.pool_size, attrs.strides, attrs.padding, attrs.dilation, attrs.ceil_mode,
            attrs.count_include_pad, "NHWC",
        )  # fmt: skip

    def _elementwise(self, op: str, value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
        """In NHWC where an argument is there already."""
        count = 1 if op in _UNARY else 2
        args = list(value.args[:count])
        if len(rt.shape_of(value)) != 4 or not any(_known_nhwc(arg, scope) is not None for arg in args):
            return None
        moved = []
        for arg in args:
            rank = len(rt.shape_of(arg))
            if rank == 4 and not rt.is_const(arg):
                moved.append(self.form(arg, scope))
            elif rank == 0:
                moved.append(arg)
            elif rt.is_const(arg):
                array = rt.value_of(arg)
                moved.append(rt.const(array.reshape((1,) * (4 - rank) + array.shape).transpose(TO_NHWC)))
            else:
                return None
        return ir.Call(value.op, [*moved, *value.args[count:]], value.attrs, value.ty_args, value.span)

    def _reduce(self, value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
        data, attrs = value.args[0], value.attrs
        if len(rt.shape_of(data)) != 4 or attrs.axis is None or _known_nhwc(data, scope) is None:
            return None
        axes = {axis % 4 for axis in rt.ints(attrs.axis)}
        make = getattr(relax.op, rt.op_name(value))
        kept = [axis for axis in TO_NHWC if axis not in axes]
        if not attrs.keepdims and kept != sorted(kept):
            return None
        out = scope.emit(make(self.form(data, scope), sorted(_AXIS[axis] for axis in axes), True))
        return relax.op.permute_dims(out, TO_NCHW) if attrs.keepdims else relax.op.reshape(out, rt.shape_of(value))

    def _moved_axes(self, op: str, value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
        """Operators that name axes: concat, strided_slice, pad, softmax, prelu, take by a constant."""
        if op == "concat":
            items = list(value.args[0].fields)
            if len(rt.shape_of(value)) != 4 or not any(_known_nhwc(item, scope) is not None for item in items):
                return None
            items = [
                rt.const(rt.value_of(x).transpose(TO_NHWC)) if rt.is_const(x) else self.form(x, scope) for x in items
            ]
            return relax.op.concat(items, _AXIS[int(value.attrs.axis) % 4])
        if op not in ("strided_slice", "nn.pad", "nn.softmax", "nn.log_softmax", "nn.prelu", "take"):
            return None
        data, attrs = value.args[0], value.attrs
        if len(rt.shape_of(data)) != 4 or _known_nhwc(data, scope) is None:
            return None
        if op == "strided_slice":
            moved = [_AXIS[int(axis.value) % 4] for axis in value.args[1].fields]
            rest = [[int(item.value) for item in arg.fields] for arg in value.args[2:]]
            return relax.op.strided_slice(self.form(data, scope), moved, *rest)
        if op == "nn.pad":
            pairs = np.array(rt.ints(attrs.pad_width)).reshape(4, 2)[list(TO_NHWC)]
            return relax.op.nn.pad(
                self.form(data, scope), pairs.reshape(-1).tolist(), attrs.pad_mode, float(attrs.pad_value)
            )
        if op == "take":
            if not rt.is_const(value.args[1]) or len(rt.shape_of(value.args[1])) != 1 or attrs.axis is None:
                return None
            return relax.op.take(self.form(data, scope), value.args[1], _AXIS[int(attrs.axis) % 4], attrs.mode)
        if op == "nn.prelu":
            return relax.op.nn.prelu(self.form(data, scope), value.args[1], _AXIS[int(attrs.axis) % 4])
        make = relax.op.nn.softmax if op == "nn.softmax" else relax.op.nn.log_softmax
        return make(self.form(data, scope), _AXIS[int(attrs.axis) % 4])

    def _permute(self, value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
        """A transpose of a tensor that is there in NHWC: the two as one."""
        known = _known_nhwc(value.args[0], scope)
        if known is None or value.attrs.axes is None:
            return None
        return _transpose(known, tuple(_AXIS[axis % 4] for axis in rt.ints(value.attrs.axes)))


def _known_nhwc(data: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    """The NHWC tensor that ``data`` is the NCHW form of, if it is one."""
    made = scope.definition(data)
    if rt.op_name(made) == "permute_dims" and made.attrs.axes is not None and rt.ints(made.attrs.axes) == TO_NCHW:
        return made.args[0]
    return None


def _transpose(data: rt.Expr, axes: tuple[int, ...]) -> rt.Expr:
    """A transpose; nothing where it is the identity."""
    return data if axes == tuple(range(len(axes))) else relax.op.permute_dims(data, axes)


def _reshape(value: ir.Call, scope: rt.Scope) -> rt.Expr | None:
    """A reshape of a transpose that moves only axes of size 1 is a reshape."""
    made = scope.definition(value.args[0])
    if rt.op_name(made) != "permute_dims" or made.attrs.axes is None:
        return None
    shape = rt.shape_of(made.args[0])
    moved = [axis for axis in rt.ints(made.attrs.axes) if shape[axis] != 1]
    return relax.op.reshape(made.args[0], rt.shape_of(value)) if moved == sorted(moved) else None
