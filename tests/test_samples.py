"""Samples as users give them: what fits is cut into batches, what does not is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwq import samples
from hwq.errors import HwqError
from hwq.samples import Inputs, as_batch, batch_size, check_array, in_batches, made_up, read_file, split, stream

ONE: Inputs = {"image": ((2, 3), "float32")}
TWO: Inputs = {"image": ((2, 3), "float32"), "size": ((2,), "int64")}
# A detector's second input often has no batch axis.
LOOSE: Inputs = {"image": ((1, 3), "float32"), "size": ((2,), "float32"), "factor": ((), "float32")}


@contextlib.contextmanager
def refused(code: str, *texts: str) -> Iterator[None]:
    """Expects an HwqError of this code that says these things, in this order."""
    with pytest.raises(HwqError, match=".*".join(texts)) as caught:
        yield
    assert caught.value.code == code


def image(count: int, start: float = 0.0) -> Any:
    return (np.arange(count * 3, dtype=np.float32) + start).reshape(count, 3)


# What fits


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_float_widths_are_converted(dtype: str) -> None:
    array = check_array("image", image(4).astype(dtype), (2, 3), "float32", "calibration")
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, image(4))


def test_what_is_not_contiguous_is_copied() -> None:
    turned = np.asfortranarray(image(4))
    assert check_array("image", turned, (2, 3), "float32", "calibration").flags.c_contiguous


@pytest.mark.parametrize("value", [image(3), (image(3),), {"image": image(3)}, image(3).tolist()])
def test_one_input_may_be_given_in_any_way(value: Any) -> None:
    np.testing.assert_array_equal(as_batch(value, ONE, "the argument")["image"], image(3))


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_inputs_may_be_given_in_order(kind: Any) -> None:
    batch = as_batch(kind([image(3), np.arange(3)]), TWO, "the argument")
    assert batch.keys() == TWO.keys()
    np.testing.assert_array_equal(batch["size"], [0, 1, 2])


@given(count=st.integers(1, 9), size=st.integers(1, 4))
def test_splitting_loses_and_adds_no_sample(count: int, size: int) -> None:
    inputs: Inputs = {"image": ((size, 3), "float32")}
    parts = list(split({"image": image(count)}, inputs))
    assert all(part["image"].shape == (size, 3) for part, _ in parts)
    kept = np.concatenate([part["image"][:real] for part, real in parts])
    np.testing.assert_array_equal(kept, image(count))
    last, real = parts[-1]
    assert (last["image"][real:] == image(count)[-1]).all(), "filled up with the final sample"


def test_a_batch_axis_is_what_all_inputs_share() -> None:
    assert batch_size(ONE) == 2
    assert batch_size(TWO) == 2
    assert batch_size(LOOSE) is None
    assert batch_size({"x": ((), "float32")}) is None


@given(count=st.integers(1, 9))
def test_calls_in_batches_are_one_call(count: int) -> None:
    seen: list[int] = []

    def double(part: dict[str, Any]) -> list[Any]:
        seen.append(len(part["image"]))
        return [part["image"] * 2, part["image"].sum(axis=1)]

    doubled, sums = in_batches(double, image(count), ONE)
    np.testing.assert_array_equal(doubled, image(count) * 2)
    np.testing.assert_array_equal(sums, image(count).sum(axis=1))
    assert seen == [2] * -(-count // 2)


def test_outputs_without_the_batch_axis_are_kept_whole() -> None:
    def boxes(part: dict[str, Any]) -> list[Any]:
        return [np.repeat(part["image"].sum(keepdims=True), 5, axis=0), np.float32(part["image"].sum())]

    inputs: Inputs = {"image": ((1, 3), "float32")}
    once, total = in_batches(boxes, image(1), inputs)
    assert once.shape == (5, 1), "five boxes of one picture, not cut to the one sample"
    assert np.shape(total) == ()
    twice, totals = in_batches(boxes, image(2), inputs)
    assert twice.shape == (10, 1)
    np.testing.assert_array_equal(totals, [3, 12])


def test_inputs_without_a_batch_axis_are_taken_whole() -> None:
    value = {"image": image(1), "size": np.float32([4, 5]), "factor": np.float32(3)}
    calls = []
    result = in_batches(lambda part: [calls.append(part) or part["factor"] * part["size"]], value, LOOSE)
    np.testing.assert_array_equal(result, [12, 15])
    assert [part["factor"].shape for part in calls] == [()]
    with refused("input-shape", r"'image' has shape \(2, 3\); accepted: \(1, 3\)"):
        as_batch({**value, "image": image(2)}, LOOSE, "the argument")


def generator() -> Iterator[Any]:
    yield image(2)
    yield {"image": image(3, 6.0)}
    yield np.empty((0, 3), np.float32)


@pytest.mark.parametrize("given_", [image(5), [image(2), image(3, 6.0)], {"image": image(5)}, generator()])
def test_streams_of_any_kind_give_the_same_samples(given_: Any) -> None:
    parts = [part["image"] for part in stream(given_, ONE)]
    assert all(part.shape == (2, 3) for part in parts)
    np.testing.assert_array_equal(np.unique(np.concatenate(parts), axis=0), image(5))


def test_made_up_samples_fit_and_are_ordinary() -> None:
    batch = made_up(TWO)
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == dict(TWO)
    assert 0.1 < batch["image"].std() < 3
    np.testing.assert_array_equal(made_up(TWO)["image"], batch["image"])


def test_a_digest_tells_content_and_order() -> None:
    def digest(*batches: Any) -> str:
        found = samples.Digest()
        for batch in batches:
            found.add({"image": batch})
        return found.hex()

    assert digest(image(2), image(2, 1.0)) == digest(image(2), image(2, 1.0))
    assert len({digest(image(2), image(2, 1.0)), digest(image(2, 1.0), image(2)), digest(image(2))}) == 3


# What does not


NAN, HUGE = image(3), image(3).astype(np.float64)
NAN[1, 2] = np.nan
HUGE[2, 0] = 1e300  # finite, but no float32


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (np.zeros((4, 2), np.float32), "input-shape", r"'image' has shape \(4, 2\); accepted: \(N, 3\)"),
        (np.zeros(3, np.float32), "input-shape", r"has shape \(3,\); accepted: \(N, 3\)"),
        (np.float32(1), "input-shape", r"has shape \(\); accepted"),
        (np.zeros((4, 3), np.uint8), "input-type", "has type uint8; accepted: float32"),
        (np.zeros((4, 3), complex), "input-type", "has type complex128"),
        (np.array([["a"] * 3]), "input-type", "accepted: float32"),
        (None, "input-type", "has type object"),
        ([[1.0, 2.0, 3.0], [4.0]], "input-shape", "holds rows of different lengths; accepted: rows of one length"),
        ([np.zeros(3), np.zeros(2)], "input-shape", "rows of different lengths"),
        ([[[1.0], [2.0, 3.0]]], "input-shape", "rows of different lengths"),
        (np.zeros((0, 3), np.float32), "samples-empty", r"holds no samples; accepted: \(N, 3\), N at least 1"),
        (NAN, "input-nan", "NaN or infinity in sample 1"),
        (HUGE, "input-nan", "NaN or infinity in sample 2"),
        ({"picture": image(2)}, "input-name", "names inputs 'picture'; accepted: 'image'"),
        ({}, "input-name", "names inputs nothing; accepted: 'image'"),
        ((image(2), image(2)), "input-name", "gives 2 for the inputs 'image'; accepted: one array for each"),
        ((), "input-name", "gives 0 for the inputs 'image'"),
    ],
)
def test_a_value_that_does_not_fit_is_named(value: Any, code: str, text: str) -> None:
    with refused(code, "the argument", text):
        as_batch(value, ONE, "the argument")


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (image(2), "input-name", "gives 1 for the inputs 'image', 'size'; accepted: one array for each, or a dict"),
        ((image(2),) * 3, "input-name", "gives 3 for the inputs"),
        ((image(2), np.arange(3)), "input-shape", r"of different lengths \[2, 3\]"),
        ((image(2), np.arange(2.0)), "input-type", "'size' has type float64; accepted: int64"),
    ],
)
def test_several_inputs_that_do_not_fit_are_named(value: Any, code: str, text: str) -> None:
    with refused(code, text):
        as_batch(value, TWO, "the argument")


@pytest.mark.parametrize(
    ("given_", "code", "text"),
    [
        ([], "samples-empty", "calibration holds no samples; accepted: at least one"),
        (iter(()), "samples-empty", "holds no samples"),
        (np.zeros((0, 3), np.float32), "samples-empty", "holds no samples"),
        ([{"image": np.zeros((0, 3), np.float32)}], "samples-empty", "holds no samples"),
        (7, "input-type", "calibration is int; accepted: an array, or an iterable"),
        (generator, "input-type", "calibration is function"),  # not called
        ("x.npz", "input-type", "accepted: float32"),
        (list(image(2)), "input-shape", r"has shape \(3,\); accepted: \(N, 3\)"),  # without the batch axis
    ],
)
def test_a_stream_that_does_not_fit_is_named(given_: Any, code: str, text: str) -> None:
    with refused(code, text):
        list(stream(given_, ONE))


# Files


def test_files_are_read_with_labels_and_by_short_name(tmp_path: Path) -> None:
    labels = np.arange(3)
    for name in ("image", "x"):
        np.savez(tmp_path / "samples.npz", **{name: image(3), "labels": labels})
        arrays, found = read_file(tmp_path / "samples.npz", ["image"])
        np.testing.assert_array_equal(arrays["image"], image(3))
        np.testing.assert_array_equal(found, labels)
    np.savez(tmp_path / "samples.npz", image=image(3), labels=labels)
    arrays, found = read_file(tmp_path / "samples.npz", ["image", "labels"])
    assert found is None, "an input of that name is no label"
    np.save(tmp_path / "samples.npy", image(3))
    np.testing.assert_array_equal(read_file(tmp_path / "samples.npy", ["image"])[0]["image"], image(3))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with refused("samples-missing", "samples.npz", "No such file"):
        read_file(path, ["image"])
    with refused("samples-missing", "Is a directory"):
        read_file(tmp_path, ["image"])
    np.savez(path, image=image(300))
    whole = path.read_bytes()
    for wrong in (b"", b"no zip at all", whole[:100], whole[:-30], whole[:200] + bytes(50) + whole[250:]):
        path.write_bytes(wrong)
        with refused("samples-invalid", "is damaged or of another kind"):
            read_file(path, ["image"])
    np.savez(path, image=np.array([{"a": 1}], dtype=object))
    with refused("samples-invalid", "accepted: an .npz of plain arrays"):
        read_file(path, ["image"])
    np.savez(path, picture=image(3))
    with refused("samples-invalid", r"holds 'picture'; accepted: 'image' \(or x\), and optionally labels"):
        read_file(path, ["image"])
    with refused("samples-invalid", "holds 'picture'; accepted: 'image', 'size', and optionally labels"):
        read_file(path, ["image", "size"])
    np.savez(path)
    with refused("samples-invalid", "holds nothing"):
        read_file(path, ["image"])


def test_whole_numbers_that_the_type_does_not_hold_are_refused() -> None:
    """2**32 would become 0."""
    given_ = np.array([[1, 2**32]])
    with refused("input-range", "'ids' holds 4294967296, which is beyond the type int32; accepted: -2147483648 to"):
        as_batch(given_, {"ids": ((1, 2), "int32")}, "the argument")
    assert as_batch(given_, {"ids": ((1, 2), "int64")}, "the argument")["ids"].tolist() == given_.tolist()
