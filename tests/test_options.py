"""Outputs that could not be written are refused before the work; no model is taken for a --decoder's cache."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from hwq.errors import HwqError
from hwq.options import JobCommand, check_output, read_dynamic, read_shapes


def test_what_can_be_written_passes(tmp_path: Path) -> None:
    check_output(None)
    check_output(str(tmp_path / "new.hwq"))
    (tmp_path / "old.hwq").write_bytes(b"")
    check_output(str(tmp_path / "old.hwq"))
    check_output("/dev/null")


@pytest.mark.parametrize(("name", "reason"), [("", "it is a folder"), ("absent/out.hwq", "there is no folder")])
def test_what_cannot_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(HwqError, match=reason) as refused:
        check_output(str(tmp_path / name))
    assert refused.value.code == "save-failed"


@pytest.mark.parametrize(
    ("line", "cache"),
    [
        ("m.onnx", None),
        ("m.onnx --decoder", "float32"),
        ("--decoder m.onnx", "float32"),
        ("--decoder --threads 2 m.onnx", "float32"),
        ("--decoder int8 m.onnx", "int8"),
        ("--decoder=int8 m.onnx", "int8"),
        ("--decoder=int9 m.onnx", "int9"),
    ],
)
def test_a_decoder_s_cache_may_be_left_out(line: str, cache: str | None) -> None:
    @click.command(cls=JobCommand)
    @click.argument("model")
    @click.option("--decoder")
    @click.option("--threads")
    def command(model: str, decoder: str | None, threads: str | None) -> tuple[str, str | None]:
        return model, decoder

    assert command.main(line.split(), standalone_mode=False) == ("m.onnx", cache)


@pytest.mark.parametrize(
    "given", ["ids", "ids:1=3..3", "ids:1=0..4", "ids:1=1..4,mask:1=1..5", "ids:1=1..4,ids:2=1..4"]
)
def test_lengths_that_are_none_are_named_as_they_were_typed(given: str) -> None:
    with pytest.raises(HwqError, match=re.escape(f"--dynamic is '{given}'; accepted: an input, its axis")) as refused:
        read_dynamic((given,))
    assert refused.value.code == "dynamic-invalid"


def test_what_is_given_twice_is_refused() -> None:
    assert read_shapes(["x=1x3", "y=2"]) == {"x": (1, 3), "y": (2,)}
    assert read_dynamic(("x:1=1..4", "y:2=1..4")) == {"x": {1: (1, 4)}, "y": {2: (1, 4)}}
    with pytest.raises(HwqError, match=r"--shape is 'x=1x4', of an input that has a shape already; accepted: "):
        read_shapes(["x=1x3", "x=1x4"])
    with pytest.raises(HwqError, match=r"--dynamic is 'x:1=1..8', of an axis that has lengths already; accepted: "):
        read_dynamic(("x:1=1..4", "x:1=1..8"))
