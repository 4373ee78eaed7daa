"""Quantities as people type them on a command line: 0.5%, 3ms, 4MB."""

from __future__ import annotations

import re

from hwq.errors import HwqError

_UNITS: dict[str, dict[str, float]] = {
    "fraction": {"%": 0.01, "": 1.0},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2},
}
_EXAMPLES = {"fraction": "0.5% or 0.005", "time": "3ms, 250us or 0.01s", "size": "4MB, 300kB, 2MiB or 1000B"}


def parse(text: str, kind: str, option: str) -> float:
    """``text`` in SI units; kind: "fraction", "time" (seconds) or "size" (bytes). Raises HwqError "quantity-invalid"."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)\s*", text)
    factor = _UNITS[kind].get(match[2]) if match else None
    if match is None or factor is None:
        raise HwqError("quantity-invalid", f"{option} is {text!r}; accepted: {_EXAMPLES[kind]}")
    return float(match[1]) * factor
