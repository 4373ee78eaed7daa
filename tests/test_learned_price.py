"""Learned prices: near what is measured, with intervals that hold what they say, from this machine's records alone."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwq import cost, learned_price
from hwq.learned_price import (
    FOLDS,
    Learned,
    Row,
    folds_of,
    from_text,
    kind_of,
    known_for,
    layer_digest,
    learn,
    quantiles,
    refined,
    refresh,
    rows_of,
    shipped,
    to_text,
    usable_for,
)
from hwq.price_features import FEATURES, describe, workload_of
from hwq.store import Record, key_of, put, summarize, tool_versions
from hwq.target import Target
from hwq.workload import Workload

VNNI = Target.load("x86-avx512-vnni")
AVX2 = Target.load("x86-avx2")
DENSE = "cpu/dense:3"


def dense(rows: int, inputs: int, outputs: int, scheme: str = "w8a8") -> Workload:
    return Workload(
        op="dense",
        scheme=scheme,
        input_shapes=((rows, inputs),),
        output_shape=(rows, outputs),
        has_bias=True,
        out_dtype="float32" if scheme == "f32" else "int8",
    )


def records(target: Target, count: int, rng: np.random.Generator, scale: float = 1.0) -> list[Record]:
    """Dense layers that take 1.5 times their base, twice as long in float, with 5% of noise; all times ``scale``."""
    found = []
    for _ in range(count):
        rows, inputs, outputs = (int(2 ** rng.uniform(*ends)) for ends in ((0, 5), (4, 9), (4, 9)))
        workload = dense(rows, inputs, outputs, str(rng.choice(["w8a8", "f32"])))
        base_s = describe(workload, DENSE, "l2", target).base_s
        factor = 3.0 if workload.scheme == "f32" else 1.5
        seconds = scale * factor * base_s * float(np.exp(rng.normal(0, 0.05)))
        found.append(summarize(key_of(workload, f"{DENSE}#0@l2", target, tool_versions()), [seconds], 0.0))
    return found


@pytest.fixture(scope="module")
def taught() -> Learned:
    """A model of 150 synthetic records."""
    rows = rows_of(records(VNNI, 150, np.random.default_rng(1)), VNNI, tool_versions())
    return learn(rows, VNNI.fingerprint, {"records": len(rows)})[0]


def rows_with_noise(count: int, rng: np.random.Generator) -> list[Row]:
    """Three rows a group; the ratio follows one feature, and its noise, 2% to 30%, another."""
    rows = []
    for i in range(count):
        features = np.zeros(len(FEATURES))
        features[:3] = np.random.default_rng(i // 3).uniform(-1, 1, 3)
        features[3:6] = rng.uniform(-1, 1, 3)
        noise = 0.3 if features[4] > 0 else 0.02
        measured_s = float(np.exp(0.5 * features[0] + rng.normal(0, noise)))
        kind = ("dense", "int8")
        rows.append(Row(base_s=1.0, features=tuple(features), measured_s=measured_s, group=f"{i // 3}", kind=kind))
    return rows


def test_intervals_cover_what_they_say_where_the_noise_differs(rng: np.random.Generator) -> None:
    """90% of new layers, in the quiet part as in the noisy one, where the interval is many times wider."""
    model, found = learn(rows_with_noise(600, rng), "machine", {})
    assert 0.85 <= found.coverage <= 0.95
    new = rows_with_noise(1200, np.random.default_rng(99))[600:]
    given = np.array([row.features for row in new], np.float32)
    spread = learned_price.spreads(model.spread, given)
    score = (np.log([row.measured_s for row in new]) - model.centre.predict(given)) / spread
    low, high = model.ends[0]
    held = (low <= score) & (score <= high)
    noisy = given[:, 4] > 0
    assert 0.85 <= held.mean() <= 0.95
    assert 0.8 <= held[noisy].mean() <= 1.0
    assert 0.8 <= held[~noisy].mean() <= 1.0
    assert np.median(spread[noisy]) > 3 * np.median(spread[~noisy])


def test_quantiles_leave_half_of_the_rest_on_each_side() -> None:
    scores = np.arange(-50, 50) / 10
    low, high = quantiles(scores)
    assert ((low <= scores) & (scores <= high)).mean() == pytest.approx(0.91, abs=0.011)
    assert low == pytest.approx(-4.6)
    assert high == pytest.approx(4.5)
    assert quantiles([1.0, 2.0]) == (0.0, 2.0), "few scores give their extremes, and the price itself is inside"


def test_near_duplicates_are_in_one_fold() -> None:
    groups = [layer_digest(dense(1, inputs, 10, scheme)) for inputs in range(1, 200) for scheme in ("w8a8", "f32")]
    folds = folds_of(groups)
    assert (folds[::2] == folds[1::2]).all()
    assert set(folds) == set(range(FOLDS))


def test_prices_follow_the_records(taught: Learned) -> None:
    for workload, factor in ((dense(3, 77, 200), 1.5), (dense(9, 130, 90, "f32"), 3.0)):
        found = taught.price(workload, DENSE, "l2", VNNI)
        assert found is not None
        expected = factor * describe(workload, DENSE, "l2", VNNI).base_s
        assert found.source == "learned"
        assert found.latency_s == pytest.approx(expected, rel=0.15)
        assert found.interval_s[0] < found.latency_s < found.interval_s[1] < 1.5 * found.latency_s
        assert found.weight_bytes == cost.weight_bytes(workload)


def test_what_was_never_seen_has_no_learned_price(taught: Learned) -> None:
    shape = (1, 8, 8, 16)
    pool = Workload(op="add", scheme="w8a8", input_shapes=(shape, shape), output_shape=shape, out_dtype="int8")
    assert taught.price(pool, "x86/binary:1", "l2", VNNI) is None


def test_a_dynamic_layer_costs_no_less_than_its_static_twin() -> None:
    """The shipped trees know none: of some of these they expect less of the layer that does more."""
    known, rose = shipped(), 0
    for target in (VNNI, AVX2):
        for rows, inputs, outputs in itertools.product((1, 16, 128), (64, 384), (48, 2000)):
            static = replace(dense(rows, inputs, outputs), out_dtype="float32")
            workload = replace(static, scheme="w8a8_dyn", input_shapes=((rows, inputs), (rows,)))
            found, twin = (known.price(one, DENSE, "l2", target) for one in (workload, static))
            assert found is not None
            assert twin is not None
            assert found.latency_s >= twin.latency_s
            assert found.interval_s[0] <= found.latency_s <= found.interval_s[1]
            rose += found.latency_s == twin.latency_s
    assert rose > 0


def test_tables_of_each_width_are_a_kind() -> None:
    table = Workload(op="gather", scheme="f32", input_shapes=((1, 8),), output_shape=(1, 8, 64))
    kinds = [kind_of(replace(table, scheme=scheme)) for scheme in ("f32", "w8a8_dyn", "w4a16_g128")]
    assert kinds == [("gather", "f32"), ("gather", "int8"), ("gather", "int4_g128")]


def test_elsewhere_the_interval_is_as_wide_as_the_rooflines(taught: Learned) -> None:
    found = taught.price(dense(3, 77, 200), DENSE, "l2", AVX2)
    assert found is not None
    assert found.interval_s[0] <= found.latency_s / cost.FASTER
    assert found.interval_s[1] >= found.latency_s * cost.SLOWER


def test_training_is_deterministic_and_survives_its_file(taught: Learned) -> None:
    rows = rows_of(records(VNNI, 150, np.random.default_rng(1)), VNNI, tool_versions())
    again = learn(rows, VNNI.fingerprint, {"records": len(rows)})[0]
    text = to_text(taught)
    assert to_text(again) == text
    read = from_text(text)
    assert to_text(read) == text
    workload = dense(5, 100, 100)
    assert read.price(workload, DENSE, "l2", VNNI) == taught.price(workload, DENSE, "l2", VNNI)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 99}'])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a learned price cannot be read"):
        from_text(text)


# Whose records teach what


def test_only_this_machines_records_of_these_tools_teach(rng: np.random.Generator) -> None:
    own, foreign = records(VNNI, 20, rng), records(AVX2, 20, rng)
    old = [replace(one, key=replace(one.key, tools="hwq 0.0.1")) for one in own]
    assert {row.measured_s for row in rows_of([*foreign, *old, *own], VNNI, tool_versions())} == {
        one.median_s for one in own
    }
    assert rows_of([*foreign, *old], VNNI, tool_versions()) == ()


def test_the_latest_record_of_a_kernel_counts(rng: np.random.Generator) -> None:
    (one,) = records(VNNI, 1, rng)
    newer = replace(one, key=replace(one.key, schedule=f"{DENSE}#1@l2"), median_s=7.0, measured_at=one.measured_at + 1)
    (row,) = rows_of([newer, one], VNNI, tool_versions())
    assert row.measured_s == 7.0


def test_a_foreign_record_is_never_a_measured_price(taught: Learned, rng: np.random.Generator) -> None:
    """Not even where it is offered: another machine's figure as this one's is a defect."""
    (foreign,) = records(AVX2, 1, rng)
    workload = workload_of(foreign.key.workload)
    with pytest.raises(AssertionError, match="another machine"):
        cost.price(workload, VNNI, record=foreign)
    learned = taught.price(workload, DENSE, "l2", VNNI)
    assert cost.price(workload, VNNI, learned=learned).source == "learned"


def test_a_machines_own_records_correct_the_shipped_model(taught: Learned, rng: np.random.Generator) -> None:
    """A machine twice as slow as its file says: after 80 records prices are right, and the interval its own."""
    rows = rows_of(records(AVX2, 80, rng, scale=2.0), AVX2, tool_versions())
    found = refined(taught, rows, AVX2.fingerprint)
    assert found is not None
    workload = dense(6, 99, 140)
    expected = 2 * 1.5 * describe(workload, DENSE, "l2", AVX2).base_s
    before, after = (model.price(workload, DENSE, "l2", AVX2) for model in (taught, found[0]))
    assert before is not None
    assert after is not None
    assert abs(after.latency_s / expected - 1) < 0.15 < abs(before.latency_s / expected - 1)
    assert after.interval_s[1] < 1.5 * after.latency_s
    assert refined(taught, rows[:20], AVX2.fingerprint) is None, "too few"


def conv(channels: int, op: str = "conv2d") -> Workload:
    shape = (1, 14, 14, channels)
    attrs = {"kernel": (3, 3), "strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    return Workload(
        op=op,
        scheme="w8a8",
        input_shapes=(shape,),
        output_shape=shape,
        has_bias=True,
        out_dtype="int8",
        attrs=tuple(sorted((attrs | ({"groups": channels} if op != "conv2d" else {})).items())),
    )


def put_convs(store: Path, target: Target, count: int, factor: float) -> None:
    """Records of ``count`` convolutions that all take ``factor`` times their base."""
    for channels in range(8, 8 + 4 * count, 4):
        workload = conv(channels)
        base_s = describe(workload, "cpu/conv2d:1", "l2", target).base_s
        key = key_of(workload, "cpu/conv2d:1#0@l2", target, tool_versions())
        put(store, summarize(key, [factor * base_s], 0.0))


def test_another_architecture_s_records_teach_from_nothing(tmp_path: Path) -> None:
    """A board's convolutions: they price convolutions, and of what was never measured on Arm they say nothing."""
    store, cache = tmp_path / "records.sqlite", tmp_path / "cache"
    target = replace(Target.load("arm-cortex-a76"), cpu_model="a board")
    assert usable_for(target, cache) is None
    put_convs(store, target, 60, 3.0)
    assert refresh(target, store, cache) is not None
    found = usable_for(target, cache)
    assert found is not None
    assert found.kinds == found.own == {("conv2d", "int8")}
    assert len(found.centre.feature) == learned_price.OWN_ROUNDS, "none of the shipped trees"
    new = conv(102)
    priced = found.price(new, "cpu/conv2d:1", "l2", target)
    assert priced is not None
    assert priced.latency_s == pytest.approx(3 * describe(new, "cpu/conv2d:1", "l2", target).base_s, rel=0.1)
    assert found.price(conv(64, "depthwise_conv2d"), "cpu/depthwise:1", "l2", target) is None
    assert found.price(dense(3, 77, 200), DENSE, "l2", target) is None


def test_kinds_without_records_of_their_own_keep_the_wide_interval(tmp_path: Path) -> None:
    """Convolutions measured on another x86: depthwise is priced by the shipped trees, and as sure as they are there."""
    store, cache = tmp_path / "records.sqlite", tmp_path / "cache"
    target = replace(AVX2, name="other", cpu_model="a machine of its own")
    put_convs(store, target, 60, 1.5)
    assert refresh(target, store, cache) is not None
    found = usable_for(target, cache)
    assert found is not None
    assert found.own == {("conv2d", "int8")} < found.kinds
    own, other = (
        found.price(conv(102), "cpu/conv2d:1", "l2", target),
        found.price(conv(64, "depthwise_conv2d"), "cpu/depthwise:1", "l2", target),
    )
    assert own is not None
    assert other is not None
    assert own.interval_s[1] < 1.5 * own.latency_s
    assert other.interval_s[0] <= other.latency_s / cost.FASTER
    assert other.interval_s[1] >= other.latency_s * cost.SLOWER


def test_what_the_shipped_model_has_seen_is_not_learned_twice(taught: Learned) -> None:
    rows = rows_of(records(VNNI, 150, np.random.default_rng(1)), VNNI, tool_versions())
    assert refined(taught, rows, VNNI.fingerprint) is None


def test_the_kept_model_is_refreshed_as_records_come(tmp_path: Path, rng: np.random.Generator) -> None:
    store, cache = tmp_path / "records.sqlite", tmp_path / "cache"
    target = replace(AVX2, name="other", cpu_model="a machine of its own")
    assert refresh(target, store, cache) is None
    assert to_text(known_for(target, cache)) == to_text(shipped())
    put(store, *records(target, 80, rng))
    assert refresh(target, store, cache) is not None
    kept = known_for(target, cache)
    assert kept.fingerprint == target.fingerprint
    assert refresh(target, store, cache) is None, "nothing new"
    put(store, *records(target, 10, rng))
    assert refresh(target, store, cache) is None, "little new"
    put(store, *records(target, 40, rng))
    assert refresh(target, store, cache) is not None
    (path,) = (cache / "price").iterdir()
    path.write_text("damaged")
    assert to_text(known_for(target, cache)) == to_text(shipped())


def test_the_shipped_model_is_whole() -> None:
    """It is small, says where it is from, and is as good as is said of it."""
    assert learned_price.SHIPPED_AT.stat().st_size < 300_000
    model = shipped()
    assert to_text(model) == learned_price.SHIPPED_AT.read_text()
    summary = model.summary
    assert summary["records"] >= 400
    assert summary["median_error"] <= 0.12
    assert 0.85 <= summary["coverage"] <= 0.95
    assert {"machine", "tools"} <= summary.keys()
    assert {("conv2d", "int8"), ("conv2d", "f32"), ("dense", "int8"), ("quantize", "int8")} <= model.kinds


def test_a_workload_is_read_back_from_its_key() -> None:
    shape = (1, 8, 8, 16)
    attrs = (("kernel", (3, 3)), ("padding", (1, 1, 1, 1)))
    one = Workload(op="conv2d", scheme="w8a8", input_shapes=(shape,), output_shape=shape, attrs=attrs, parallel=2)
    assert workload_of(one.key) == one
    assert dataclasses.asdict(workload_of(one.key)) == dataclasses.asdict(one)
