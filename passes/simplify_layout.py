"""A chain of reshapes and transposes becomes at most one transpose, and none where the order of the elements is kept.

Before:  lv = R.permute_dims(x, [0, 3, 1, 2]); lv1 = R.reshape(lv, [n, c, h * w]); gv = R.permute_dims(lv1, [0, 2, 1])
After:   gv = R.reshape(x, [n, h * w, c])

Stands after to_nhwc, whose transposes meet those of the network here: the heads of detectors, the shuffling of
channels. A reshape that splits an axis in a way that does not divide it ends the chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import gcd

from tvm import IRModule, relax
from tvm.ir.transform import PassContext, module_pass

from hwq import relax_tools as rt
from hwq.graph import Shape

_MOVES = ("reshape", "permute_dims")


@module_pass(opt_level=0, name="SimplifyLayout")
@dataclass(frozen=True)
class SimplifyLayout:
    """The pass; it has no options."""

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        return rt.rewrite(mod, _rule)


def _rule(value: rt.Expr, scope: rt.Scope) -> rt.Expr | None:
    if rt.op_name(value) not in _MOVES:
        return None
    chain = [value]
    while rt.op_name(scope.definition(chain[-1].args[0])) in _MOVES:
        chain.append(scope.definition(chain[-1].args[0]))
    # The longest tail that can be written shorter.
    for length in range(len(chain), 0, -1):
        found = _shorter(list(reversed(chain[:length])), scope)
        if found is not None:
            return found
    return None


def _shorter(chain: list[rt.Expr], scope: rt.Scope) -> rt.Expr | None:
    """The chain, first operator first, with fewer transposes, or as many and fewer reshapes; None where there is no
    such."""
    source, target = chain[0].args[0], rt.shape_of(chain[-1])
    axes = moved_axes(chain)
    if axes is None:
        return None
    shape, order = axes
    if order == tuple(range(len(order))):
        if rt.shape_of(source) == target:
            return source
        return relax.op.reshape(source, target) if len(chain) > 1 or rt.op_name(chain[0]) == "permute_dims" else None
    before = shape != rt.shape_of(source)
    after = tuple(shape[axis] for axis in order) != target
    transposes = sum(rt.op_name(item) == "permute_dims" for item in chain)
    if (1, 1 + before + after) >= (transposes, len(chain)):
        return None
    out = scope.emit(relax.op.reshape(source, shape)) if before else source
    out = relax.op.permute_dims(out, order)
    return relax.op.reshape(scope.emit(out), target) if after else out


def moved_axes(chain: list[rt.Expr]) -> tuple[Shape, Shape] | None:
    """What a chain does to the elements of its source: (a shape of the source, the order in which its axes come out).

    Axes of size 1 are left out, and axes that stay together are one. None where a reshape does not follow the axes.
    """
    # A piece is a part of an axis of the source; sizes holds its size, source and current the order of the pieces.
    sizes: list[int] = []
    source: list[int] = []
    dims: list[list[int]] = []
    for size in rt.shape_of(chain[0].args[0]):
        dims.append([len(sizes)] if size > 1 else [])
        if size > 1:
            source.append(len(sizes))
            sizes.append(size)
    for item in chain:
        if rt.op_name(item) == "permute_dims":
            axes = reversed(range(len(dims))) if item.attrs.axes is None else rt.ints(item.attrs.axes)
            dims = [dims[axis] for axis in axes]
            continue
        flat = [piece for dim in dims for piece in dim]
        dims = []
        for size in rt.shape_of(item):
            dim: list[int] = []
            while size > 1:
                if not flat:
                    return None
                piece = flat.pop(0)
                part = gcd(size, sizes[piece])
                if part not in (size, sizes[piece]) or part == 1:
                    return None
                if part < sizes[piece]:  # the outer part belongs here, the inner to what follows
                    inner = len(sizes)
                    sizes.append(sizes[piece] // part)
                    sizes[piece] = part
                    source.insert(source.index(piece) + 1, inner)
                    flat.insert(0, inner)
                dim.append(piece)
                size //= part
            dims.append(dim)
    current = [piece for dim in dims for piece in dim]
    return _joined(sizes, source, current)


def _joined(sizes: list[int], source: list[int], current: list[int]) -> tuple[Shape, Shape]:
    """Pieces that follow each other in both orders, as one."""
    follows = {a: b for a, b in pairwise(source)}
    starts = [piece for i, piece in enumerate(current) if i == 0 or follows.get(current[i - 1]) != piece]
    place = {piece: axis for axis, piece in enumerate(sorted(starts, key=source.index))}
    shape = [1] * len(starts)
    axis = -1
    for piece in source:
        axis += piece in place
        shape[axis] *= sizes[piece]
    return tuple(shape), tuple(place[piece] for piece in starts)
