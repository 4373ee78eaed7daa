"""Price: work and bytes counted as on paper, time that grows with them, and a record that beats the roofline."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwq import cost
from hwq.graph import Activation
from hwq.scheme import Cost
from hwq.store import key_of, summarize
from hwq.target import HOST_TIERS, Target
from hwq.workload import Workload

VNNI = Target.load("x86-avx512-vnni")
# Round numbers of our own, so that a file measured anew changes no expectation here.
ROUND = replace(
    VNNI,
    compute=tuple(replace(row, macs_per_cycle=100.0) for row in VNNI.compute),
    clock_hz=1e9,
    **{"l2_bytes": 1 << 20, "l3_bytes": 32 << 20},  # type: ignore[arg-type]
    **{"l2_bytes_per_s": 40e9, "l3_bytes_per_s": 20e9, "memory_bytes_per_s": 5e9},  # type: ignore[arg-type]
)
SCHEMES = ("f32", "w8a8", "w4a8")


def conv(
    scheme: str = "w8a8",
    size: int = 14,
    inputs: int = 64,
    outputs: int = 32,
    kernel: int = 3,
    groups: int = 1,
    **more: Any,
) -> Workload:
    """A stride-1 convolution with padding that keeps the size, (1, size, size, inputs) to (1, size, size, outputs)."""
    attrs = {"kernel": (kernel, kernel), "strides": (1, 1), "groups": groups, "dilation": (1, 1)}
    return Workload(
        op=more.pop("op", "conv2d"),
        scheme=scheme,
        input_shapes=((1, size, size, inputs),),
        output_shape=(1, size, size, outputs),
        attrs=tuple(sorted(attrs.items())),
        has_bias=True,
        out_dtype="float32" if scheme in ("f32", "bf16") else "int8",
        **more,
    )


def dense(scheme: str, rows: int, inputs: int, outputs: int) -> Workload:
    out = "float32" if scheme in ("f32", "bf16") else "int8"
    shapes = {"input_shapes": ((rows, inputs),), "output_shape": (rows, outputs)}
    return Workload(op="dense", scheme=scheme, has_bias=True, out_dtype=out, **shapes)  # type: ignore[arg-type]


def dynamic(scheme: str, rows: int, inputs: int, outputs: int) -> Workload:
    """``dense`` on rows with a scale each."""
    return replace(dense(scheme, rows, inputs, outputs), input_shapes=((rows, inputs), (rows,)), out_dtype="float32")


def test_macs_by_hand() -> None:
    assert cost.op_macs(conv()) == 14 * 14 * 32 * 3 * 3 * 64
    assert cost.op_macs(conv(groups=4)) == 14 * 14 * 32 * 3 * 3 * 16
    assert cost.op_macs(conv(op="depthwise_conv2d", outputs=64, groups=64)) == 14 * 14 * 64 * 9
    assert cost.op_macs(dense("w8a8", 3, 100, 10)) == 3 * 100 * 10
    assert cost.op_macs(conv(op="max_pool2d", outputs=64)) == 14 * 14 * 64 * 9
    assert cost.op_macs(conv(op="add", outputs=64)) == 14 * 14 * 64


def test_weight_bytes_by_hand() -> None:
    weights = 32 * 64 * 3 * 3
    assert cost.weight_bytes(conv("w8a8")) == weights + 8 * 32
    assert cost.weight_bytes(conv("w4a8")) == weights // 2 + 8 * 32
    assert cost.weight_bytes(conv("f32")) == 4 * weights + 4 * 32
    assert cost.weight_bytes(replace(conv("f32"), has_bias=False)) == 4 * weights
    assert cost.weight_bytes(conv("bf16")) == 2 * weights + 4 * 32
    assert cost.weight_bytes(conv("w8a8", groups=4)) == weights // 4 + 8 * 32
    assert cost.weight_bytes(conv("w8a8", op="depthwise_conv2d", outputs=64, groups=64)) == 64 * 9 + 8 * 64
    assert cost.weight_bytes(dense("w4a8", 1, 3, 1)) == 2 + 8, "half a byte counts as one"
    assert cost.weight_bytes(dense("w4a8_g64", 1, 130, 5)) == 130 * 5 // 2 + 5 * (4 + 4 * 3), "a scale a group"
    assert cost.weight_bytes(dynamic("w8a8_dyn", 3, 100, 10)) == 1000 + 12 * 10, "a start, a scale and a bias each"
    assert cost.weight_bytes(dynamic("w4a8_g64_dyn", 3, 130, 5)) == 130 * 5 // 2 + 5 * (8 + 4 * 3)
    assert cost.weight_bytes(conv(op="add")) == 0


def test_moved_bytes_by_hand() -> None:
    pixels = 14 * 14
    assert cost.moved_bytes(conv("w8a8")) == pixels * 64 + cost.weight_bytes(conv("w8a8")) + pixels * 32
    for scheme in ("f32", "bf16"):
        assert cost.moved_bytes(conv(scheme)) == 4 * pixels * 64 + cost.weight_bytes(conv(scheme)) + 4 * pixels * 32
    add = Workload(op="add", scheme="w8a8", input_shapes=((1, 8), (1, 8)), output_shape=(1, 8), out_dtype="int8")
    assert cost.moved_bytes(add) == 24
    quantize = Workload(op="quantize", scheme="w8a8", input_shapes=((1, 8),), output_shape=(1, 8), out_dtype="int8")
    assert cost.moved_bytes(quantize) == 4 * 8 + 8
    dequantize = replace(quantize, op="dequantize", out_dtype="float32")
    assert cost.moved_bytes(dequantize) == 8 + 4 * 8


@pytest.mark.parametrize(("scheme", "out", "size"), [("f32", "float32", 4), ("w8a8", "int8", 1)])
def test_a_bias_of_attention_is_of_floats(scheme: str, out: str, size: int) -> None:
    sizes: dict[str, Any] = {"op": "attention", "scheme": scheme, "output_shape": (1, 8, 32), "out_dtype": out}
    given, bias, attrs = ((1, 8, 32), (1, 9, 32), (1, 9, 32)), (1, 2, 8, 9), (("causal", False), ("heads", 2))
    tensors = size * (8 + 9 + 9 + 8) * 32
    plain = Workload(input_shapes=given, attrs=attrs, **sizes)
    assert cost.moved_bytes(plain) == tensors
    assert cost.moved_bytes(replace(plain, input_shapes=(*given, bias))) == tensors + 4 * 2 * 8 * 9
    constant = replace(plain, attrs=(("bias", bias), *attrs))
    assert cost.moved_bytes(constant) == tensors + 4 * 2 * 8 * 9


@pytest.mark.parametrize("name", [*HOST_TIERS, "arm-cortex-a72", "arm-cortex-a76", "arm-neoverse-n2", "arm-apple-m2"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 48), (16, 64, 2000), (64, 384, 384), (128, 1536, 48)])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_dynamic_layer_costs_no_less_than_the_static_one(
    name: str, rows: int, inputs: int, outputs: int, activation: str
) -> None:
    """That writes float too; the dynamic one multiplies each row with its scale besides."""
    target = Target.load(name)
    schemes = [scheme for scheme in target.schemes_for("dense") if scheme.endswith("_dyn")]
    assert schemes
    for scheme in schemes:
        static = replace(dense(scheme.removesuffix("_dyn"), rows, inputs, outputs), out_dtype="float32")
        kind = Activation(kind=activation)
        mine = replace(dynamic(scheme, rows, inputs, outputs), activation=kind)
        alike = replace(static, activation=kind if kind.clamps else Activation())
        assert cost.static_twin(mine) == alike
        assert cost.compute_s(mine, target) > cost.compute_s(alike, target)
        for threads in (1, 2):
            pair = [cost.price_roofline(one, target, threads) for one in (mine, alike)]
            assert pair[0].latency_s >= pair[1].latency_s
            assert pair[0].interval_s[1] >= pair[1].interval_s[1]


def test_what_knows_no_threads_is_priced_on_one() -> None:
    for op in ("append", "append_int8", "rows_at"):
        workload = Workload(op=op, scheme="f32", input_shapes=((1, 64, 4096),), output_shape=(1, 64, 4096))
        assert cost.price_roofline(workload, ROUND, 2) == cost.price_roofline(workload, ROUND, 1)


def test_roofline_by_hand_where_computing_rules() -> None:
    workload = conv(size=28, inputs=512, outputs=512)
    outputs = 28 * 28 * 512
    compute_s = (outputs * 9 * 512 + outputs) / 100.0 / 1e9  # the products, and one requantize an output
    found = cost.price_roofline(workload, ROUND)
    assert found.latency_s == pytest.approx(compute_s + cost.CALL_OVERHEAD_S, rel=1e-9)
    two = cost.price_roofline(workload, ROUND, threads=2)
    overhead_s = cost.CALL_OVERHEAD_S + ROUND.parallel_overhead_s
    assert two.latency_s == pytest.approx(compute_s / 2 + overhead_s, rel=1e-9)
    assert found.source == "roofline"
    assert found.weight_bytes == cost.weight_bytes(workload)


@pytest.mark.parametrize(
    ("inputs", "rate"),
    [(200, 40e9), (4096, 20e9), (32768, 5e9)],
)
def test_roofline_by_hand_where_weights_rule(inputs: int, rate: float) -> None:
    # One row times (inputs, 4096) int8 weights: 0.8 MiB fits the L2, 16 MiB the L3, 128 MiB neither.
    workload = dense("w8a8", 1, inputs, 4096)
    latency_s = cost.price_roofline(workload, ROUND).latency_s
    assert latency_s == pytest.approx(cost.moved_bytes(workload) / rate + cost.CALL_OVERHEAD_S, rel=1e-9)


shapes = st.tuples(
    st.sampled_from(SCHEMES), st.integers(1, 64), st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 5])
)


@given(shapes, st.sampled_from(HOST_TIERS), st.sampled_from(["size", "inputs", "outputs", "kernel"]), st.integers(2, 4))
def test_more_work_never_costs_less(shape: tuple[str, int, int, int, int], name: str, grown: str, factor: int) -> None:
    scheme, size, inputs, outputs, kernel = shape
    sizes = {"size": size, "inputs": inputs, "outputs": outputs, "kernel": kernel}
    target = Target.load(name)
    small = cost.price_roofline(conv(scheme, **sizes), target)
    large = cost.price_roofline(conv(scheme, **{**sizes, grown: factor * sizes[grown]}), target)
    assert large.latency_s >= small.latency_s
    assert large.interval_s[1] >= small.interval_s[1]
    assert large.weight_bytes >= small.weight_bytes


@given(shapes, st.sampled_from(HOST_TIERS))
def test_the_interval_holds_the_price_and_is_wide(shape: tuple[str, int, int, int, int], name: str) -> None:
    scheme, size, inputs, outputs, kernel = shape
    found = cost.price_roofline(conv(scheme, size, inputs, outputs, kernel), Target.load(name))
    low, high = found.interval_s
    assert 0 < low <= found.latency_s <= high < math.inf


@given(shapes, st.sampled_from(HOST_TIERS))
def test_a_second_thread_never_costs_more_than_its_start(shape: tuple[str, int, int, int, int], name: str) -> None:
    scheme, size, inputs, outputs, kernel = shape
    workload, target = conv(scheme, size, inputs, outputs, kernel), replace(Target.load(name), cores=2)
    one, two, nine = (cost.price_roofline(workload, target, threads).latency_s for threads in (1, 2, 9))
    assert two <= one + target.parallel_overhead_s * 1.001
    assert nine == two, "there are two cores"


@pytest.mark.parametrize(
    "name", [*HOST_TIERS, "arm-cortex-a72", "arm-cortex-a76", "arm-neoverse-n2", "cuda-t4", "cuda-h100"]
)
def test_bytes_and_seconds_are_in_order_on_every_machine(name: str) -> None:
    target = Target.load(name)
    f32, w8, w4 = (cost.price_roofline(conv(scheme, 28, 256, 256), target) for scheme in SCHEMES)
    assert w4.weight_bytes < w8.weight_bytes < f32.weight_bytes
    assert w8.latency_s <= w4.latency_s, "int4 computes in int8 after unpacking"
    if name != "x86-generic":
        assert w8.latency_s < f32.latency_s
    assert 1e-7 < w8.latency_s < 1, "231 million products"


def test_a_transcendental_costs_more_in_float() -> None:
    plain = Workload(op="unary", scheme="f32", input_shapes=((1, 99999),), output_shape=(1, 99999))
    tanh = replace(plain, activation=Activation(kind="tanh"))
    assert cost.op_macs(tanh) > cost.op_macs(plain)
    gelu = replace(conv("f32", kernel=1, inputs=8), activation=Activation(kind="gelu"))
    assert (
        cost.price_roofline(gelu, VNNI).latency_s > cost.price_roofline(conv("f32", kernel=1, inputs=8), VNNI).latency_s
    )


@pytest.mark.parametrize("op", ["quantize", "dequantize", "unary", "concat", "reshape", "add", "multiply"])
def test_operators_without_weights_have_a_price(op: str) -> None:
    workload = Workload(op=op, scheme="w8a8", input_shapes=((1, 64),), output_shape=(1, 64), out_dtype="int8")
    for name in HOST_TIERS:
        found = cost.price(workload, Target.load(name))
        assert found.weight_bytes == 0
        assert cost.CALL_OVERHEAD_S < found.latency_s < 1e-5


def test_writing_float_costs_the_bytes_more() -> None:
    small, large = (cost.float_output_s(conv("w8a8", size, 64, 64), VNNI) for size in (28, 112))
    assert small == 3 * 28 * 28 * 64 / VNNI.l2_bytes_per_s
    assert large > 16 * small, "it does not fit the L2"


def test_a_measured_record_beats_the_roofline() -> None:
    workload = conv()
    record = summarize(key_of(workload, "cpu/conv2d:1", VNNI, "v"), [1.0, 2.0, 3.0])
    found = cost.price(workload, VNNI, record=record)
    assert (found.latency_s, found.source) == (2.0, "measured")
    least, most = cost.IN_PLACE
    spread_s = record.spread_s / 2
    assert found.interval_s == (pytest.approx(2 * least - spread_s), pytest.approx(2 * most + spread_s + cost.COLD_S))
    assert found.weight_bytes == cost.weight_bytes(workload)
    assert cost.price(workload, VNNI).source == "roofline"


def test_a_record_of_something_else_is_a_defect() -> None:
    record = summarize(key_of(conv(), "cpu/conv2d:1", VNNI, "v"), [1.0])
    with pytest.raises(AssertionError, match="workload"):
        cost.price(conv(size=7), VNNI, record=record)
    with pytest.raises(AssertionError, match="machine"):
        cost.price(conv(), Target.load("x86-avx2"), record=record)


def test_a_learned_price_beats_the_roofline_and_a_record_beats_both() -> None:
    workload = conv()
    learned = Cost(latency_s=3.0, weight_bytes=1, source="learned", interval_s=(2.0, 4.0))
    record = summarize(key_of(workload, "cpu/conv2d:1", VNNI, "v"), [1.0])
    assert cost.price(workload, VNNI, learned=learned) == learned
    assert cost.price(workload, VNNI, record=record, learned=learned).source == "measured"


# Whole networks


@given(st.floats(0.5, 2), st.floats(0, 1e-4), st.lists(st.floats(1e-4, 1e-1), min_size=4, max_size=9))
def test_what_follows_a_line_is_fitted_by_it(scale: float, offset_s: float, sums: list[float]) -> None:
    found = cost.fit_whole([(one, scale * one + offset_s) for one in (*sums, 10 * max(sums))])
    assert found.count == len(sums) + 1
    assert found.residual < 1e-6
    for one in sums:
        assert found.whole_s(one) == pytest.approx(scale * one + offset_s, rel=1e-6)


def test_few_networks_or_near_ones_fit_a_scale_alone() -> None:
    assert cost.fit_whole([]).whole_s(3.0) == 3.0
    one = cost.fit_whole([(1.0, 1.2)])
    assert (one.scale, one.offset_s, one.residual) == (pytest.approx(1.2), 0.0, pytest.approx(0.0))
    near = cost.fit_whole([(1.0, 1.2), (1.1, 1.3), (1.2, 1.2)])
    assert near.offset_s == 0.0
    assert 0 < near.residual < 0.2


def test_a_call_never_costs_less_than_nothing() -> None:
    found = cost.fit_whole([(1.0, 0.5), (2.0, 1.8), (4.0, 4.4)])
    assert found.offset_s == 0.0
    assert found.scale > 0
