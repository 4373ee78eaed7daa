"""Rewriting Relax functions: what every pass in ``hwq.passes`` stands on.

A network is one Relax function ``main`` whose body is one dataflow block over tensors of static shape. ``rewrite``
walks its bindings once, in order, hands each to a rule, and builds the function anew without dead bindings. The name of
the ONNX node, or the torch module, that a call came from travels in the call's span (``origin``), which structural
equality ignores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import IRModule, ir, relax

from hwq.graph import Shape

Expr = Any  # relax.Expr; TVM carries no types for it
Array = npt.NDArray[Any]


# Spans of the TVM script parser name files; those with this prefix are ours.
_OURS = "from "
# Ends the path of a torch module, "" for the whole network: a place where many calls come from, not the name of one.
MODULE = "\t"


def module_origin(path: str) -> str:
    """The origin of a call that came from the torch module at ``path``; ``hwq.layer_names`` makes names of it."""
    return path + MODULE


def origin(expr: Expr) -> str:
    """The name of the ONNX node, or the ``module_origin``, that a call came from, "" if unknown."""
    span = getattr(expr, "span", None)
    name = "" if span is None else str(span.source_name.name)
    return name.removeprefix(_OURS) if name.startswith(_OURS) else ""


def with_origin(expr: Expr, name: str) -> Expr:
    """The same call, said to come from ``name``, see ``origin``; anything that is not a call is returned as it is."""
    if not name or not isinstance(expr, ir.Call) or origin(expr) == name:
        return expr
    return ir.Call(
        expr.op, expr.args, expr.attrs, expr.ty_args, ir.Span(ir.SourceName(_OURS + name), 0, 0, 0, 0), expr.ty
    )


def op_name(expr: Expr) -> str:
    """The Relax operator's name without "relax." ("nn.conv2d"); "" for what is not a call of an operator."""
    if isinstance(expr, ir.Call) and isinstance(expr.op, ir.Op):
        return str(expr.op.name).removeprefix("relax.")
    return ""


def is_const(expr: Expr) -> bool:
    """Whether an expression is a tensor of known values."""
    return isinstance(expr, ir.GenericConst)


def value_of(expr: Expr) -> Array:
    """A constant's values as a NumPy array; a view, not to be written to."""
    plain = str(expr.value.dtype).startswith(("float32", "float64", "float16", "int", "uint"))
    return np.asarray(np.from_dlpack(expr.value) if plain else expr.value.numpy())


def scalar_of(expr: Expr) -> float | None:
    """The number in a constant of one element, None for anything else."""
    if not is_const(expr) or any(dim != 1 for dim in shape_of(expr)):
        return None
    return float(value_of(expr).reshape(()))


def const(array: Array) -> Expr:
    """An array as a constant of its own type and shape."""
    return relax.const(np.ascontiguousarray(array).reshape(np.shape(array)), str(array.dtype))


class NotStaticError(Exception):
    """A tensor has a shape that is not known before the network runs, or is not a tensor at all."""


def shape_of(expr: Expr) -> Shape:
    """The static shape of a tensor expression. Raises NotStaticError where it has none."""
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(dim, ir.prim.IntImm) for dim in shape):
        raise NotStaticError
    return tuple(int(dim) for dim in shape)


def dtype_of(expr: Expr) -> str:
    """The type of a tensor's elements, by NumPy's name."""
    return str(expr.ty.dtype)


def ints(values: Any) -> tuple[int, ...]:
    """TVM's integers as Python's."""
    return tuple(int(value) for value in values)


def substitute(expr: Expr, new: Mapping[Expr, Expr]) -> Expr:
    """``expr`` (one binding's value, in A-normal form) with its variables replaced; types and spans are kept."""
    if isinstance(expr, relax.Var | ir.GlobalVar):
        return new.get(expr, expr)
    if isinstance(expr, ir.Tuple):
        fields = [substitute(item, new) for item in expr.fields]
        return expr if all(a.same_as(b) for a, b in zip(fields, expr.fields, strict=True)) else relax.Tuple(fields)
    if isinstance(expr, ir.Call):
        args = [substitute(arg, new) for arg in expr.args]
        if all(a.same_as(b) for a, b in zip(args, expr.args, strict=True)):
            return expr
        return ir.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span, expr.ty)
    if isinstance(expr, relax.TupleGetItem):
        tuple_value = substitute(expr.tuple_value, new)
        return (
            tuple_value.fields[expr.index]
            if isinstance(tuple_value, ir.Tuple)
            else relax.TupleGetItem(tuple_value, expr.index)
        )
    return expr


def variables(expr: Expr) -> list[Expr]:
    """The variables that a binding's value reads, with repeats."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, ir.Tuple):
        return [var for item in expr.fields for var in variables(item)]
    if isinstance(expr, ir.Call):
        return [var for arg in expr.args for var in variables(arg)]
    if isinstance(expr, relax.TupleGetItem):
        return variables(expr.tuple_value)
    return []


def bindings_of(mod: IRModule) -> list[tuple[Expr, Expr]]:
    """The (variable, value) pairs of ``main``, in order."""
    return [(bind.var, bind.value) for block in mod["main"].body.blocks for bind in block.bindings]


def count_uses(mod: IRModule) -> dict[Expr, int]:
    """How often each variable of ``main`` is read, the function's results included."""
    uses: dict[Expr, int] = {}
    for value in [value for _, value in bindings_of(mod)] + [mod["main"].body.body]:
        for var in variables(value):
            uses[var] = uses.get(var, 0) + 1
    return uses


@dataclass(slots=True, kw_only=True)
class Scope:
    """What a rule may know and do at one binding: the bindings made so far, and who reads what."""

    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    made: dict[Expr, Expr] = field(default_factory=dict)
    readers: dict[Expr, int] = field(default_factory=dict)
    here: str = ""

    def emit(self, value: Expr, name: str | None = None) -> Expr:
        """Bind ``value`` to a new variable, which is returned; ``name`` (default: this binding's) is its origin."""
        value = self.builder.normalize(value)
        if isinstance(value, relax.Var) or is_const(value):
            return value
        var = relax.DataflowVar("lv", value.ty)
        self.made[var] = with_origin(value, origin(value) or (self.here if name is None else name))
        self.readers[var] = 1
        return var

    def definition(self, expr: Expr) -> Expr:
        """The value bound to a variable, None for a parameter or anything else."""
        return self.made.get(expr) if isinstance(expr, relax.Var) else None

    def sole_reader(self, expr: Expr, op: str) -> Expr:
        """The definition of ``expr`` if it is a call of ``op`` that nothing but this binding reads."""
        value = self.definition(expr)
        return value if value is not None and op_name(value) == op and self.readers.get(expr, 0) == 1 else None


# A rule looks at a binding's value, its arguments already rewritten, and returns what stands in its place: a new value,
# a variable or a constant; None leaves it alone.
Rule = Callable[[Expr, Scope], "Expr | None"]


def first_of(rules: Iterable[Rule], value: Expr, scope: Scope) -> Expr | None:
    """What the first rule that applies returns."""
    for rule in rules:
        out = rule(value, scope)
        if out is not None:
            return out
    return None


def rewrite(mod: IRModule, rule: Rule, *, repeat: bool = True) -> IRModule:
    """Apply ``rule`` to each binding of ``main``; with ``repeat``, again until it changes nothing.

    The very same module is returned where the rule never applied. Bindings that nothing reads are dropped.
    """
    for _ in range(64):
        changed = _rewrite_once(mod, rule)
        if changed is None:
            return mod
        mod = changed
        if not repeat:
            return mod
    raise AssertionError("a rewriting rule does not come to rest")


def _rewrite_once(mod: IRModule, rule: Rule) -> IRModule | None:
    func = mod["main"]
    old_uses = count_uses(mod)
    new: dict[Expr, Expr] = {}
    scope = Scope(readers={param: old_uses.get(param, 0) for param in func.params})
    changed = False
    for var, old_value in bindings_of(mod):
        value = substitute(old_value, new)
        scope.here = origin(value)
        out = None if isinstance(value, relax.Var) else rule(value, scope)
        changed |= out is not None
        out = value if out is None else out
        if not (isinstance(out, relax.Var) or is_const(out)):
            out = scope.emit(out)
            scope.readers[out] = 0
        new[var] = out
        if isinstance(out, relax.Var):
            scope.readers[out] = scope.readers.get(out, 0) + old_uses.get(var, 0)
    if not changed:
        return None
    return build_main(mod, func.params, list(scope.made.items()), substitute(func.body.body, new))


def new_main(scope: Scope, params: list[Expr], outputs: list[Expr]) -> IRModule:
    """The module of what an importer bound in ``scope``: ``main`` takes ``params`` and returns the tuple of outputs."""
    empty = relax.Function(params, relax.SeqExpr([], params[0]), params[0].ty).with_attr("global_symbol", "main")
    mod = scope.builder.get()
    mod["main"] = empty
    return build_main(mod, params, list(scope.made.items()), relax.Tuple(outputs))


def build_main(mod: IRModule, params: list[Expr], made: list[tuple[Expr, Expr]], result: Expr) -> IRModule:
    """A copy of ``mod`` whose ``main`` has these parameters, bindings and result; dead bindings are dropped."""
    live = set(variables(result))
    kept: list[tuple[Expr, Expr]] = []
    for var, value in reversed(made):
        if var in live:
            live.update(variables(value))
            kept.append((var, value))
    outputs = set(variables(result))
    new: dict[Expr, Expr] = {}
    block = []
    for index, (var, value) in enumerate(reversed(kept)):
        new[var] = (relax.Var if var in outputs else relax.DataflowVar)(f"lv{index}", var.ty)
        block.append(relax.VarBinding(new[var], relax.BlockBuilder().normalize(substitute(value, new))))
    blocks = [relax.DataflowBlock(block)] if block else []
    body = relax.SeqExpr(blocks, substitute(result, new))
    func = relax.Function(params, relax.BlockBuilder().normalize(body), attrs=mod["main"].attrs)
    func = func.with_attr("global_symbol", "main")
    out = mod.clone()
    out["main"] = relax.BlockBuilder().normalize(func)
    return out


def inlined(mod: IRModule, given: Sequence[Expr], scope: Scope) -> Expr:
    """What ``main`` of ``mod`` computes of ``given``, its bindings and its other functions now in ``scope``."""
    new: dict[Expr, Expr] = dict(zip(mod["main"].params, given, strict=True))
    for gvar, func in mod.functions.items():
        if gvar.name_hint != "main":
            new[gvar] = scope.builder.add_func(func, gvar.name_hint)
    for var, value in bindings_of(mod):
        value = substitute(value, new)
        new[var] = value if isinstance(value, relax.Var | ir.Tuple) or is_const(value) else scope.emit(value)
    return substitute(mod["main"].body.body, new)
