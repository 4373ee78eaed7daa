"""Merge an explicit padding into the convolution or pooling behind it.

Before:  lv = R.nn.pad(x, (0, 0, 0, 0, 1, 1, 1, 1)); gv = R.nn.conv2d(lv, w, padding=[0, 0, 0, 0])
After:   gv = R.nn.conv2d(x, w, padding=[1, 1, 1, 1])

Stands after fold_scale, before to_nhwc (NCHW only). A convolution takes padding with 0; max pooling takes -inf (or any
number at most 0 where its input is never negative); average pooling takes 0 where it counts its padding, or has none of
its own. Padding of the batch or the channels, and padding that is read twice, is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import IRModule, ir, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt


@module_pass(opt_level=0, name="FoldPadding")
@dataclass(frozen=True)
class FoldPadding:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    op = rt.op_name(value)
    if op not in ("nn.conv2d", "nn.max_pool2d", "nn.avg_pool2d"):
        return None
    attrs = value.attrs
    layout = attrs.data_layout if op == "nn.conv2d" else attrs.layout
    pad = scope.sole_reader(value.args[0], "nn.pad")
    if layout != "NCHW" or pad is None or pad.attrs.pad_mode != "constant":
        return None
    widths = rt.ints(pad.attrs.pad_width)
    if any(widths[:4]):
        return None
    own = rt.ints(attrs.padding)
    padding = (own[0] + widths[4], own[1] + widths[6], own[2] + widths[5], own[3] + widths[7])
    fill, data = float(pad.attrs.pad_value), pad.args[0]
    if op == "nn.conv2d":
        if fill != 0.0:
            return None
        return relax.op.nn.conv2d(
            data, value.args[1], attrs.strides, padding, attrs.dilation, int(attrs.groups), "NCHW", "OIHW"
        )  # fmt: skip
    size, strides, dilation = rt.ints(attrs.pool_size), rt.ints(attrs.strides), rt.ints(attrs.dilation)
    spans = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    if any(side >= span for side, span in zip(padding, spans * 2, strict=True)) or attrs.ceil_mode:
        return None  # a window that holds nothing but padding has no maximum
    if op == "nn.max_pool2d":
        if not (fill == float("-inf") or (fill <= 0.0 and _never_negative(data, scope))):
            return None
        return relax.op.nn.max_pool2d(data, size, strides, padding, dilation)
    if fill != 0.0 or (any(own) and not attrs.count_include_pad):
        return None
    return relax.op.nn.avg_pool2d(data, size, strides, padding, dilation, False, True)


def _never_negative(data: rt.Expr, scope: rt.Scope) -> bool:
    made = scope.definition(data)
    op = rt.op_name(made)
    return op in ("nn.relu", "nn.relu6", "sigmoid") or (
        isinstance(made, ir.Call) and op == "clip" and float(made.args[1].value) >= 0
    )
