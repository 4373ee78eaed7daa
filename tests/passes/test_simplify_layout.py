"""Chains of reshapes and transposes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from relax_cases import assert_left_alone, assert_pass
from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R

from hwq import relax_tools as rt
from hwq.passes.simplify_layout import SimplifyLayout, moved_axes


def test_a_chain_that_keeps_the_order_is_a_reshape() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 6), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 3, 1, 2])
                lv1 = R.reshape(lv, [1, 6, 20])
                gv = R.permute_dims(lv1, [0, 2, 1])
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 6), "float32")):
            with R.dataflow():
                gv = R.reshape(x, [1, 20, 6])
                R.output(gv)
            return gv

    assert_pass(SimplifyLayout(), Before, Expected)


def test_a_shuffle_of_channels_keeps_one_transpose() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 6), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 3, 1, 2])
                lv1 = R.reshape(lv, [1, 2, 3, 4, 5])
                lv2 = R.permute_dims(lv1, [0, 2, 1, 3, 4])
                lv3 = R.reshape(lv2, [1, 6, 4, 5])
                gv = R.permute_dims(lv3, [0, 2, 3, 1])
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 6), "float32")):
            with R.dataflow():
                lv = R.reshape(x, [20, 2, 3])
                lv1 = R.permute_dims(lv, [0, 2, 1])
                gv = R.reshape(lv1, [1, 4, 5, 6])
                R.output(gv)
            return gv

    assert_pass(SimplifyLayout(), Before, Expected)


def test_a_chain_that_ends_where_it_began_is_gone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 1), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 3, 1, 2])
                lv1 = R.permute_dims(lv, [0, 2, 3, 1])
                gv = R.nn.relu(lv1)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 1), "float32")):
            with R.dataflow():
                gv = R.nn.relu(x)
                R.output(gv)
            return gv

    assert_pass(SimplifyLayout(), Before, Expected)


def test_one_transpose_and_a_reshape_across_axes_are_left_alone() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 6), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [1, 0])
                lv1 = R.reshape(lv, [8, 3])
                gv = R.permute_dims(lv1, [1, 0])
                R.output(gv)
            return gv

    assert_left_alone(SimplifyLayout(), Before)


@given(data=st.data())
def test_any_chain_moves_the_elements_where_numpy_moves_them(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4)))
    x = np.arange(int(np.prod(shape))).reshape(shape)
    var = relax.Var("x", relax.TensorType(shape, "float32"))
    scope, expr, y, chain = rt.Scope(), var, x, []
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            axes = data.draw(st.permutations(range(y.ndim)))
            expr, y = scope.emit(relax.op.permute_dims(expr, axes)), y.transpose(axes)
        else:
            sizes, new = list(y.shape), []
            while sizes:  # join two neighbours, split one, or keep it
                size = sizes.pop(0)
                way = data.draw(st.sampled_from("jsk"))
                if way == "j" and sizes:
                    sizes[0] *= size
                elif way == "s" and size % 2 == 0:
                    new += [2, size // 2]
                else:
                    new.append(size)
            expr, y = scope.emit(relax.op.reshape(expr, new)), y.reshape(new)
        chain.append(scope.definition(expr))
    found = moved_axes(chain)
    if found is not None:
        source, order = found
        np.testing.assert_array_equal(x.reshape(source).transpose(order).reshape(y.shape), y)


def test_a_transpose_read_twice_serves_both() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 6), "float32")):
            with R.dataflow():
                lv = R.permute_dims(x, [0, 3, 1, 2])
                lv1 = R.nn.relu(lv)
                lv2 = R.permute_dims(lv, [0, 2, 3, 1])
                gv = R.nn.relu(lv2)
                R.output(lv1, gv)
            return (lv1, gv)

    after: IRModule = SimplifyLayout()(Before)
    assert sorted(rt.op_name(value) for _, value in rt.bindings_of(after)) == ["nn.relu", "nn.relu", "permute_dims"]
