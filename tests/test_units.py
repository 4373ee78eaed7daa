"""Quantities as people type them."""

from __future__ import annotations

import pytest

from hwq.errors import HwqError
from hwq.units import parse


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0.5%", "fraction", 0.005),
        ("0.005", "fraction", 0.005),
        ("0", "fraction", 0.0),
        ("0%", "fraction", 0.0),
        (".5 %", "fraction", 0.005),
        ("99.9%", "fraction", 0.999),
        ("3ms", "time", 3e-3),
        ("2min", "time", 120.0),
        ("250 us", "time", 250e-6),
        ("250µs", "time", 250e-6),
        ("0.01s", "time", 0.01),
        ("1e-3s", "time", 1e-3),
        ("1000B", "size", 1000.0),
        ("300kB", "size", 300e3),
        ("4mb", "size", 4e6),
        ("2MiB", "size", 2 * 1024.0**2),
        (" 1.5 GB ", "size", 1.5e9),
    ],
)
def test_what_people_type_is_read(text: str, kind: str, value: float) -> None:
    assert parse(text, kind, "--option") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "fraction"),
        ("abc", "fraction"),
        ("-1%", "fraction"),
        ("1", "fraction"),  # 1%, or all of it?
        ("100%", "fraction"),
        ("0.5ms", "fraction"),
        ("nan", "fraction"),
        ("3", "time"),  # of what?
        ("3 h", "time"),
        ("-3ms", "time"),
        ("3 ms 4", "time"),
        ("3MS", "time"),  # M is mega: capitals matter in times
        ("inf", "time"),
        ("4", "size"),
        ("4MW", "size"),
        ("1,5MB", "size"),
        ("4%", "size"),
    ],
)
def test_what_cannot_be_read_is_refused_with_an_example(text: str, kind: str) -> None:
    with pytest.raises(HwqError) as caught:
        parse(text, kind, "--max-what")
    assert caught.value.code == "quantity-invalid"
    assert caught.value.message.startswith(f"--max-what is {text!r}; accepted: ")
