"""What workers are handed: arrays once each, the reference's output, and a bound where floats are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anchor_runs import anchor
from trial_runs import case

from hwq import reference
from hwq.target import Target
from hwq.trial_data import kernel_content, made_up, task_content

HOST = Target.load("host")
SMALL = replace(HOST, l2_bytes=1000, l3_bytes=5000)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bytes_come_over_their_whole_range(dtype: str) -> None:
    values = made_up((10_000,), dtype, 1)
    info = np.iinfo(dtype)
    assert str(values.dtype) == dtype
    assert (values.min(), values.max()) == (info.min, info.max)
    assert not np.array_equal(values, made_up((10_000,), dtype, 2)), "another seed, other values"
    np.testing.assert_array_equal(values, made_up((10_000,), dtype, 1))


@pytest.mark.parametrize(("dtype", "least", "most"), [("float32", -6, 6), ("int64", 0, 1), ("bool", 0, 1)])
def test_other_values_are_ordinary(dtype: str, least: int, most: int) -> None:
    values = made_up((1000,), dtype, 1)
    assert str(values.dtype) == dtype
    assert least <= values.min() < values.max() <= most


def test_a_task_holds_the_reference_s_output(tmp_path: Path) -> None:
    integer, floating = (anchor("conv2d", scheme, (1, 6, 6, 16), 32) for scheme in ("w8a8", "f32"))
    step, program, _ = case(HOST, integer)
    content = task_content(step, program, HOST, "l2", tmp_path)
    assert np.load(content["expected"]).shape == (1, 6, 6, 32)
    assert content["bound"] is None, "integers are equal"
    step, program, _ = case(HOST, floating)
    content = task_content(step, program, HOST, "l2", tmp_path)
    expected, bound = np.load(content["expected"]), np.load(content["bound"])
    assert expected.dtype == np.float32
    assert 0 < bound.min()
    assert bound.max() < 1e-3 * np.abs(expected).max()


def test_weights_from_afar_are_as_far_as_the_level_before_holds(tmp_path: Path) -> None:
    step, program, _ = case(HOST, anchor("dense", "w8a8", (1, 512), 512))
    spans = [task_content(step, program, SMALL, home, tmp_path)["span_bytes"] for home in ("l2", "l3", "memory")]
    assert spans == [0, 4000, 10_000]
    step, program, _ = case(HOST)
    assert task_content(step, program, SMALL, "memory", tmp_path)["span_bytes"] == 0, "it is not felt"


def test_the_reference_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, program, _ = case(HOST, anchor("conv2d", "f32", (1, 6, 6, 16), 32))
    first = task_content(step, program, HOST, "l2", tmp_path)
    other = replace(step, constants=tuple(value + 1 for value in step.constants))
    assert task_content(other, program, HOST, "l2", tmp_path)["expected"] != first["expected"]
    monkeypatch.setattr(reference, "evaluate", lambda *_: pytest.fail("computed again"))
    assert task_content(step, program, HOST, "l2", tmp_path) == first


def test_equal_arrays_are_one_file(tmp_path: Path) -> None:
    step, _, kernel = case(HOST)
    first = kernel_content(kernel, step, tmp_path / "one.so", tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(set(first["constants"])) <= len(step.constants)
    second = kernel_content(kernel, step, tmp_path / "two.so", tmp_path)
    assert second == {**first, "library": str(tmp_path / "two.so")}
    assert sorted(tmp_path.iterdir()) == files
    assert kernel.pack is not None
    np.testing.assert_array_equal(np.load(first["constants"][0]), kernel.pack(step.constants[0]))
    other = replace(kernel, pack=lambda weight: kernel.pack(-weight))  # type: ignore[misc]
    third = kernel_content(other, step, tmp_path / "one.so", tmp_path)
    changed = [a != b for a, b in zip(first["constants"], third["constants"], strict=True)]
    assert changed == [True, *[False] * (len(step.constants) - 1)]
    own = tmp_path / "own"
    own.mkdir()
    fourth = kernel_content(other, step, tmp_path / "one.so", own, tmp_path)
    assert fourth == third, "what is there already is not written again"
    assert list(own.iterdir()) == []
