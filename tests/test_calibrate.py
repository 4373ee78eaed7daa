"""Calibration: what is seen of every tensor, interrupted or not, and the parameters that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as floats
import tiny

from hwq import calibrate, numerics
from hwq.cache import default_cache_dir
from hwq.calibrate import Statistics, choose, collect, load_means, save_means, split_activations
from hwq.errors import HwqError
from hwq.execute import Runner, bind, compile_kernels
from hwq.graph import Activation
from hwq.lower import lower
from hwq.observers import Histogram
from hwq.scheme import QType
from hwq.target import Target
from hwq.ties import tied_tensors

HOST = Target.load("host")
SPLIT = split_activations(tiny.net())
TENSORS = list(SPLIT.shapes)
Batches = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runner() -> Runner:
    program = lower(SPLIT, {}, {}, {}, HOST, 1)
    return bind(program, compile_kernels([program], HOST, default_cache_dir()))


@pytest.fixture(scope="module")
def batches() -> Batches:
    rng = np.random.default_rng(11)
    return [{"x": rng.standard_normal((1, 6, 5, 3)).astype(np.float32)} for _ in range(6)]


def same(one: Statistics, other: Statistics) -> None:
    assert one.histograms.keys() == other.histograms.keys()
    for name, histogram in one.histograms.items():
        for key, value in histogram.to_arrays().items():
            np.testing.assert_array_equal(value, other.histograms[name].to_arrays()[key], err_msg=name)
    assert one.rows == other.rows
    assert one.means() == other.means()


def test_split_shows_the_value_in_front_of_a_table(batches: Batches) -> None:
    plain = tiny.net()
    assert [layer.name for layer in SPLIT.layers][:4] == ["stem", "left", "left:activation", "join"]
    left, table = SPLIT.layers[1:3]
    assert (left.output, left.activation, table.inputs, table.output) == (
        "left:pre",
        Activation(),
        ("left:pre",),
        "left",
    )
    whole, parts = (floats.run_graph(graph, batches[0]) for graph in (plain, SPLIT))
    assert parts.keys() == whole.keys() | {"left:pre"}
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value)
    table = tiny.layer("unary", ("x",), "y", {"x": (1, 3), "y": (1, 3)}, activation=Activation(kind="tanh"))
    assert split_activations(tiny.alone(table)).layers == (table,), "a table by itself"
    clamped = [layer for layer in plain.layers if layer.activation.clamps]
    assert split_activations(replace(plain, layers=tuple(clamped))).layers == tuple(clamped), "these stay as they are"


def test_collect_sees_every_value_of_every_tensor(runner: Runner, batches: Batches) -> None:
    seen: list[tuple[int, int]] = []
    found = collect(runner, TENSORS, iter(batches), len(batches), progress=lambda *at: seen.append(at))
    assert seen == [(done, 6) for done in range(1, 7)]
    values = [floats.run_graph(SPLIT, batch) for batch in batches]
    assert list(found.histograms) == TENSORS
    for name in TENSORS:
        stacked = np.stack([one[name] for one in values])
        histogram = found.histograms[name]
        assert histogram.total == stacked.size
        np.testing.assert_allclose(
            [histogram.low, histogram.high], [stacked.min(), stacked.max()], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("of", "where"), [(1, "sample 2"), (2, r"batch 2 \(of 2 samples\)")])
def test_values_that_are_not_finite_are_named(of: int, where: str) -> None:
    """The first layer of the network that writes them, in whatever order tensors are asked for."""
    shapes = {"x": (of, 4), "a": (of, 4), "b": (of, 4)}
    weight = np.full((4, 4), 2, np.float32)
    layers = [tiny.layer("dense", (one,), two, shapes, weight=weight) for one, two in ("xa", "ab")]
    graph = tiny.graph([replace(one, name=f"layer {one.output}") for one in layers], ["x"], ["b"])
    program = lower(graph, {}, {}, {}, HOST, 1)
    runner = bind(program, compile_kernels([program], HOST, default_cache_dir()))
    given = [{"x": np.full((of, 4), value, np.float32)} for value in (1, 2, 3e38, 4)]
    with pytest.raises(
        HwqError,
        match=rf"^calibration {where} gives activation 'a' \(layer 'layer a'\) an infinity; accepted: finite numbers$",
    ) as caught:
        collect(runner, ["b", "a", "x"], given)
    assert caught.value.code == "values-not-finite"


def test_means_are_of_the_channels_that_weights_read(runner: Runner, batches: Batches) -> None:
    found = collect(runner, TENSORS, batches)
    assert list(found.sums) == ["x", "stem", "left", "join", "flat"]
    values = [floats.run_graph(SPLIT, batch) for batch in batches]
    for name, means in found.means().items():
        stacked = np.concatenate([one[name].reshape(-1, one[name].shape[-1]) for one in values])
        assert found.rows[name] == len(stacked)
        np.testing.assert_allclose(means, stacked.mean(axis=0), rtol=1e-4, atol=1e-5)
        assert all(float(f"{mean:.5g}") == mean for mean in means), "five digits, which a plan keeps"


class Stop(Exception):
    pass


def interrupted(batches: Batches, after: int) -> Iterator[dict[str, Any]]:
    yield from batches[:after]
    raise Stop


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_call_goes_on(
    after: int, runner: Runner, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "CHECKPOINT_S", -1.0)
    path = tmp_path / "statistics.npz"
    with pytest.raises(Stop):
        collect(runner, TENSORS, interrupted(batches, after), checkpoint=path)
    assert path.exists() == (after > 0)
    seen: list[int] = []
    found = collect(runner, TENSORS, batches, checkpoint=path, progress=lambda done, total: seen.append(done))
    assert seen == list(range(after + 1, 7)), "what was seen is not run again"
    same(found, collect(runner, TENSORS, batches))
    seen.clear()
    same(found, collect(runner, TENSORS, batches, checkpoint=path, progress=lambda done, total: seen.append(done)))
    assert seen == [], "all is kept until the caller has made something of it"


def test_an_interrupt_between_checkpoints_counts_nothing_twice(
    runner: Runner, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the progress bar, after a batch was counted and before it was kept."""
    monkeypatch.setattr(calibrate, "CHECKPOINT_S", -1.0)
    path = tmp_path / "statistics.npz"

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(runner, TENSORS, batches, checkpoint=path, progress=stop)
    same(collect(runner, TENSORS, batches, checkpoint=path), collect(runner, TENSORS, batches))


@pytest.mark.parametrize("damage", ["truncated", "other tensors", "text"])
def test_a_damaged_checkpoint_counts_as_none(
    damage: str, runner: Runner, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "CHECKPOINT_S", -1.0)
    path = tmp_path / "statistics.npz"
    tensors = TENSORS[:-1] if damage == "other tensors" else TENSORS
    with pytest.raises(Stop):
        collect(runner, tensors, interrupted(batches, 3), checkpoint=path)
    if damage != "other tensors":
        path.write_bytes(path.read_bytes()[:500] if damage == "truncated" else b"no archive")
    same(collect(runner, TENSORS, batches, checkpoint=path), collect(runner, TENSORS, batches))


def test_means_come_back_or_count_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "means.json"
    assert load_means(path) is None
    means = {"x": (0.12346, -3.0), "y": ()}
    save_means(path, means)
    assert load_means(path) == means
    for broken in (b'{"x": [1, "a"]}', b'{"x": 3}', b"[1]", b"{"):
        path.write_bytes(broken)
        assert load_means(path) is None, broken


def histogram(*values: float) -> Histogram:
    found = Histogram()
    found.update(np.array(values, np.float32))
    return found


def test_tied_tensors_share_the_range_of_them_all() -> None:
    seen = {"a": histogram(-1.0, 0.5), "b": histogram(0.0, 3.0), "c": histogram(-0.25, 0.25)}
    ties = [frozenset({"a", "b"}), frozenset({"c"})]
    found = choose(seen, ties, "minmax", frozenset(seen))
    assert found["a"] == found["b"] == numerics.choose_qparams(-1.0, 3.0, QType(bits=8))
    assert found["c"] == numerics.choose_qparams(-0.25, 0.25, QType(bits=8))
    assert seen["a"].high == 0.5, "the histograms are left as they were"


def test_every_tensor_gets_parameters(runner: Runner, batches: Batches) -> None:
    seen = collect(runner, TENSORS, batches).histograms
    found = choose(seen, tied_tensors(SPLIT), "minmax", frozenset())
    assert found.keys() == set(TENSORS)
    assert found["pool"] == found["flat"], "a view of it"
    for name, params in found.items():
        low, high = (-128 - params.zero_point) * params.scale, (127 - params.zero_point) * params.scale
        assert low - params.scale <= seen[name].low
        assert seen[name].high <= high + params.scale


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_constant_activation_is_refused_where_it_is_needed(value: float) -> None:
    seen = {"a": histogram(value, value), "b": histogram(0.0, 1.0)}
    ties = [frozenset({"a"}), frozenset({"b"})]
    with pytest.raises(HwqError, match=rf"activation 'a' has the one value {value:g} on every") as caught:
        choose(seen, ties, "mse", frozenset({"a"}))
    assert caught.value.code == "constant-activation"
    found = choose(seen, ties, "mse", frozenset({"b"}))
    assert found["a"].scale > 0
    tied = choose(seen, [frozenset({"a", "b"})], "mse", frozenset({"a", "b"}))
    assert tied["a"] == tied["b"], "its fellow varies, and gives both their range"
