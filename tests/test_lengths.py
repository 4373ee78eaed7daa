"""Dimensions that vary: numbers to all that knows nothing of them, and what is made of arrays and of a user's words."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from hwq import samples
from hwq.errors import HwqError
from hwq.graph import SPAN
from hwq.lengths import COUNT, EXTRA, Length, check_dynamic, cut_to, filled_up, leading, plain
from hwq.options import read_dynamic

INPUTS = {"ids": ((1, Length(5, 2)), "int64"), "mask": ((1, Length(5, 2)), "int64"), "x": ((1, 3), "float32")}


def test_a_length_is_the_number_that_it_is_at_most() -> None:
    size = Length(5, 2, 3)
    assert (size, json.dumps([size]), plain((1, size))) == (15, "[15]", (1, 15))
    for again in (copy.deepcopy(size), pickle.loads(pickle.dumps(size))):
        assert (again, again.tokens, again.least, again.inner) == (15, 5, 2, 3)


@pytest.mark.parametrize(
    ("shape", "found"),
    [((1, Length(5), 3), 5), ((Length(5), 3), 5), ((2, Length(5)), None), ((1, 5), None), ((), None)],
)
def test_tokens_come_first_behind_ones(shape: Any, found: int | None) -> None:
    assert leading(shape) == found


def test_arrays_are_cut_and_filled_up() -> None:
    shape = (1, Length(4, inner=2), 3)
    whole = np.arange(24.0).reshape(1, 8, 3)
    cut = cut_to(whole, shape, 3)
    np.testing.assert_array_equal(cut, whole[:, :6])
    np.testing.assert_array_equal(filled_up(cut, shape), np.where(np.arange(8)[:, None] < 6, whole, 0))
    assert cut_to(whole, shape, None) is whole


def test_a_batch_is_filled_up_and_says_how_many_tokens_it_has() -> None:
    given = {"ids": np.ones((3, 2), np.int64), "mask": np.ones((3, 2), np.int64), "x": np.ones((3, 3), np.float32)}
    parts = list(samples.stream(given, INPUTS))
    assert len(parts) == 3
    assert set(parts[0]) == {*INPUTS, *EXTRA}
    assert parts[0]["ids"].tolist() == [[1, 1, 0, 0, 0]]
    assert [int(part[COUNT][0]) for part in parts] == [2, 2, 2]


def test_samples_of_several_lengths_in_one_batch_keep_theirs() -> None:
    def sample(n: int) -> dict[str, Any]:
        return {"ids": np.full((1, n), n), "mask": np.ones((1, n), np.int64), "x": np.ones((1, 3), np.float32)}

    parts = list(samples.stream([sample(2), sample(4)], INPUTS))
    whole = samples.gathered(parts)

    def doubled(part: Any) -> tuple[Any, ...]:
        return (2 * cut_to(part["ids"], INPUTS["ids"][0], int(part[COUNT][0])),)

    found = samples.in_batches(doubled, whole, INPUTS, shapes=[INPUTS["ids"][0]])
    assert np.asarray(found).tolist() == [[4, 4, 0, 0, 0], [8, 8, 8, 8, 0]]
    assert np.asarray(samples.in_batches(doubled, sample(3), INPUTS, shapes=[INPUTS["ids"][0]])).tolist() == [[6, 6, 6]]


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ((1, 1), r"'ids' has shape \(1, 1\); accepted: \(N, 2\.\.5\)"),
        ((6, 6), "accepted"),
        ((3, 4), "3 in 'ids', 4 in"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths: tuple[int, int], found: str) -> None:
    ids, mask = (np.ones((1, n), np.int64) for n in lengths)
    with pytest.raises(HwqError, match=found) as caught:
        samples.as_batch({"ids": ids, "mask": mask, "x": np.ones((1, 3), np.float32)}, INPUTS, "the argument")
    assert caught.value.code == "input-shape"


@pytest.mark.parametrize(
    "dynamic",
    [3, {}, {"ids": 3}, {"ids": {1: 3}}, {"ids": {1: (3, 3)}}, {"ids": {1: (0, 3)}}, {"ids": {0: (1, 3), 1: (1, 3)}},
     {"ids": {1: (1, 3)}, "mask": {1: (1, 4)}}, {"ids": {1: (1, 3.7)}}, {"ids": {1.2: (1, 3)}}, {"ids": {True: (1, 3)}},
     {"ids": {1: (True, 3)}}, {"ids": {1: ("1", 3)}}],
)  # fmt: skip
def test_what_is_no_range_is_refused(dynamic: Any) -> None:
    with pytest.raises(HwqError, match="accepted: input name -> axis") as caught:
        check_dynamic(dynamic)
    assert caught.value.code == "dynamic-invalid"


def test_numbers_of_numpy_and_the_keys_of_a_file_are_numbers_too() -> None:
    assert check_dynamic({"ids": {"1": [np.int64(1), 3]}}) == {"ids": {1: (1, 3)}}


def test_the_shells_words_for_it() -> None:
    wanted = {"ids": {1: (1, 9)}, "a:b": {0: (1, 9)}}
    assert read_dynamic(("ids:1=1..9", "a:b:0=1..9")) == read_dynamic(("ids:1=1..9, a:b:0=1..9",)) == wanted
    assert read_dynamic(()) is None
    with pytest.raises(HwqError, match=r"ids=1\.\.9") as caught:
        read_dynamic(("ids=1..9",))
    assert caught.value.code == "dynamic-invalid"


@pytest.mark.parametrize("name", [COUNT, SPAN])
def test_callers_do_not_say_how_many_tokens_there_are(name: str) -> None:
    """A kernel would go so far, whatever memory there is."""
    given = {"ids": np.ones((1, 5), int), "mask": np.ones((1, 5), int), "x": np.ones((1, 3), np.float32)}
    with pytest.raises(HwqError, match="names inputs") as caught:
        samples.as_batch({**given, name: np.array([10**6, 10**6], np.int32)}, INPUTS, "the argument")
    assert caught.value.code == "input-name"
