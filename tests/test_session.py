"""Sessions: what they take as tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwq.errors import HwqError
from hwq.session import read_ids


@pytest.mark.parametrize("ids", [5, [5], (5,), np.int32(5), np.array([[5]]), np.array([5], np.uint8)])
def test_one_token_in_any_form(ids: Any) -> None:
    found = read_ids(ids, "ids", "int64")
    assert found.dtype == np.int64
    assert found.tolist() == [5]


def test_several_tokens() -> None:
    assert read_ids([[3, 1, 2]], "ids", "int32").tolist() == [3, 1, 2]
    assert read_ids(range(4), "ids", "int32").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("ids", "code", "found"),
    [
        (1.5, "input-type", "float64"),
        ("one", "input-type", "<U3"),
        ([], "samples-empty", "(0,)"),
        ([[1, 2], [3, 4]], "input-shape", "(2, 2)"),
        ([[[1]]], "input-shape", "(1, 1, 1)"),
        ([[1], [2, 3]], "input-type", "no array"),
        (True, "input-type", "bool"),
    ],
)
def test_what_is_no_token_is_refused(ids: Any, code: str, found: str) -> None:
    with pytest.raises(HwqError, match=r"'ids'.*accepted: ") as caught:
        read_ids(ids, "ids", "int64")
    assert caught.value.code == code
    assert found in caught.value.message
