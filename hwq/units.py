"""Quantities as people type them on a command line: 0.5%, 3ms, 4MB."""

from __future__ import annotations

import re

from hwq.errors import HwqError

_UNITS: dict[str, dict[str, float]] = {
    "fraction": {"%": 0.01, "": 1.0},
    "time": {"min": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1024.0, "mib": 1024.0**2, "gib": 1024.0**3},
}
_EXAMPLES = {
    "fraction": "a percentage or a fraction below 1, as 0.5% or 0.005",
    "time": "a number with its unit, as 3ms, 250us, 0.01s or 2min",
    "size": "a number with its unit, as 4MB, 300kB, 2MiB or 1000B",
}


def parse(text: str, kind: str, option: str) -> float:
    """``text`` in SI units; kind: "fraction", "time" (seconds) or "size" (bytes, in which case does not matter).

    A bare number of 1 or more is no fraction: whoever types 1 may mean 1%. Raises HwqError "quantity-invalid".
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*([a-zµ%]*)\s*", text, re.IGNORECASE)
    unit = "" if match is None else match[2].lower() if kind == "size" else match[2]
    factor = _UNITS[kind].get(unit)
    if match is None or factor is None or (kind == "fraction" and float(match[1]) >= (100 if unit == "%" else 1)):
        raise HwqError("quantity-invalid", f"{option} is {text!r}; accepted: {_EXAMPLES[kind]}")
    return float(match[1]) * factor
