"""ATen operators that move numbers and compute none: views, slices, gathers, repeats, padding, as plain Relax.

Used by ``hwq.torch_convert``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from hwq import relax_tools as rt
from hwq.torch_call import Call, cast, through_onnx


def repeated(call: Call, data: rt.Expr, times: int, axis: int) -> rt.Expr:
    """Each entry along ``axis`` several times in a row."""
    shape = rt.shape_of(data)
    wide = call.emit(relax.op.reshape(data, (*shape[: axis + 1], 1, *shape[axis + 1 :])))
    wide = call.emit(relax.op.broadcast_to(wide, (*shape[: axis + 1], times, *shape[axis + 1 :])))
    return call.emit(relax.op.reshape(wide, (*shape[:axis], shape[axis] * times, *shape[axis + 1 :])))


def _repeat_interleave(call: Call) -> Any:
    if call["dim"] is None:
        flat = call.emit(relax.op.reshape(call["self"], (math.prod(call.shape("self")),)))
        return repeated(call, flat, int(call["repeats"]), 0)
    return repeated(call, call["self"], int(call["repeats"]), call.axis("dim"))


def _embedding(call: Call) -> Any:
    return through_onnx(call, "Gather", [call["weight"], call["indices"]], axis=0)


def _select(call: Call) -> Any:
    index = np.array(int(call["index"]))
    return through_onnx(call, "Gather", [call["self"], index], axis=call.axis("dim"))


def _slice(call: Call) -> Any:
    ends = np.array([2**62 if call["end"] is None else int(call["end"])])
    starts, steps = np.array([int(call["start"] or 0)]), np.array([int(call["step"])])
    if (starts[0], steps[0]) == (0, 1) and ends[0] >= call.shape("self")[call.axis("dim")]:
        return call["self"]
    return through_onnx(call, "Slice", [call["self"], starts, ends, np.array([call.axis("dim")]), steps])


def _split(call: Call) -> Any:
    axis, sizes = call.axis("dim"), call.args.get("split_sizes", call.args.get("split_size"))
    if isinstance(sizes, int):
        whole = call.shape("self")[axis]
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    found = through_onnx(call, "Split", [call["self"], np.array(sizes)], axis=axis, outputs=max(len(sizes), 2))
    return found[: len(sizes)]


def _view(call: Call) -> Any:
    size = call.args.get("size", call.args.get("shape"))
    return through_onnx(call, "Reshape", [call["self"], np.array(size, np.int64).reshape(-1)], allowzero=1)


def _squeeze(call: Call) -> Any:
    shape = call.shape("self")
    dims = call.args.get("dim", range(len(shape)))
    drop = {dim % max(len(shape), 1) for dim in ([dims] if isinstance(dims, int) else dims)}
    return relax.op.reshape(call["self"], tuple(dim for i, dim in enumerate(shape) if i not in drop or dim != 1))


def _unsqueeze(call: Call) -> Any:
    shape = list(call.shape("self"))
    shape.insert(int(call["dim"]) % (len(shape) + 1), 1)
    return relax.op.reshape(call["self"], shape)


def _permute(call: Call) -> Any:
    rank = len(call.shape("self"))
    if "dims" in call.args:
        return relax.op.permute_dims(call["self"], [dim % rank for dim in call["dims"]])
    order = list(range(rank))
    first, second = (call.axis("dim0"), call.axis("dim1")) if "dim0" in call.args else (0, rank - 1)
    order[first], order[second] = order[second], order[first]
    return relax.op.permute_dims(call["self"], order)


def _expand(call: Call) -> Any:
    shape = call.shape("self")
    size = rt.ints(call["size"])
    old = (1,) * (len(size) - len(shape)) + shape
    target = tuple(was if dim == -1 else dim for dim, was in zip(size, old, strict=True))
    return call["self"] if target == shape else relax.op.broadcast_to(call["self"], target)


def _same(call: Call) -> Any:
    """What only says how a tensor lies in memory, or of which type it is."""
    return cast(call, next(iter(call.args.values())), call.dtype)


def _pad(call: Call) -> Any:
    if call.args.get("mode", "constant") != "constant":
        raise NotImplementedError("padding by other than a constant")
    rank, pads = len(call.shape("self")), rt.ints(call["pad"])
    before, after = [0] * rank, [0] * rank
    for i in range(len(pads) // 2):  # from the last axis on
        before[rank - 1 - i], after[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    value = np.array(call["value"] or 0.0, np.float32)
    return through_onnx(call, "Pad", [call["self"], np.array([*before, *after]), value])


VIEWS: Mapping[str, Callable[[Call], Any]] = {
    **dict.fromkeys(("split.Tensor", "split_with_sizes.default"), _split),
    **dict.fromkeys(("view.default", "reshape.default", "_unsafe_view.default"), _view),
    **dict.fromkeys(("squeeze.default", "squeeze.dim", "squeeze.dims"), _squeeze),
    **dict.fromkeys(("permute.default", "transpose.int", "t.default"), _permute),
    **dict.fromkeys(("clone.default", "contiguous.default", "alias.default", "detach.default"), _same),
    **dict.fromkeys(("lift_fresh_copy.default", "_to_copy.default", "to.dtype"), _same),
    **dict.fromkeys(("constant_pad_nd.default", "pad.default"), _pad),
    "embedding.default": _embedding,
    "expand.default": _expand,
    "repeat_interleave.self_int": _repeat_interleave,
    "select.int": _select,
    "slice.Tensor": _slice,
    "unsqueeze.default": _unsqueeze,
}
