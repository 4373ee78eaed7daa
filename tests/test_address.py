"""Names of machines: what is accepted, and what is told of the rest."""

from __future__ import annotations

import pytest

from hwq.address import Board, Tracker, read_device, read_tracker
from hwq.errors import HwqError


def test_a_board_is_named_by_its_key_and_its_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWQ_TRACKER", raising=False)
    assert read_device("local") is None
    assert read_device("pi5") == Board(key="pi5", tracker=Tracker(host="127.0.0.1", port=9190))
    assert str(read_device("pi-5.b_2@shelf:9200")) == "pi-5.b_2@shelf:9200"
    assert str(read_device("pi5@shelf")) == "pi5@shelf:9190"
    monkeypatch.setenv("HWQ_TRACKER", "192.0.2.7:9300")
    assert str(read_device("pi5")) == "pi5@192.0.2.7:9300"
    assert str(read_device("pi5@shelf:1")) == "pi5@shelf:1"
    monkeypatch.setenv("HWQ_TRACKER", "")
    assert read_tracker() == Tracker(host="127.0.0.1", port=9190)


@pytest.mark.parametrize("wrong", ["", "@", "pi5@", "@shelf:1", "pi 5", "-pi", "pi5@:1", "pi5@shelf:", "local@shelf:1"])
def test_other_names_are_refused(wrong: str) -> None:
    with pytest.raises(HwqError, match=r"accepted: ") as caught:
        read_device(wrong)
    assert caught.value.code == "device-invalid"
    assert repr(wrong.split("@")[-1]) in caught.value.message or repr(wrong) in caught.value.message


@pytest.mark.parametrize("wrong", ["shelf:0", "shelf:65536", "shelf:nine", ":9190", "shelf:-1", "shelf:9190:1x"])
def test_other_trackers_are_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWQ_TRACKER", wrong)
    with pytest.raises(HwqError, match="accepted: HOST:PORT") as caught:
        read_device("pi5")
    assert caught.value.code == "device-invalid"
    assert repr(wrong) in caught.value.message
