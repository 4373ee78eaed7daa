"""The values that travel: number formats, the named schemes, budgets, and the one exception."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from hwq.errors import HwqError
from hwq.scheme import SCHEMES, Budget, QType, parse_schemes


@pytest.mark.parametrize(
    ("qtype", "lowest", "highest"),
    [(QType(bits=8), -128, 127), (QType(bits=4), -8, 7), (QType(bits=8, signed=False), 0, 255)],
)
def test_integer_range(qtype: QType, lowest: int, highest: int) -> None:
    assert (qtype.qmin, qtype.qmax) == (lowest, highest)


def test_schemes_carry_their_own_names() -> None:
    dynamic, floating = ["w8a8_dyn", "w4a8_g64_dyn"], ["f32", "bf16", "w4a16_g128"]
    assert list(SCHEMES) == ["f32", "bf16", "w8a8", "w4a8", "w4a8_g64", *dynamic, "w4a16_g128"]
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        assert scheme.domain == ("f32" if name in (*floating, *dynamic) else "int8"), "of the tensors around a layer"
        assert scheme.dynamic == (name in dynamic)
        assert scheme.integer == (scheme.act is not None) == (scheme.accum == "int32") == (name not in floating)
        assert (scheme.weight is None) == (name in ("f32", "bf16"))
    types = {name: (scheme.weight_type, scheme.act_type, scheme.weight_bits) for name, scheme in SCHEMES.items()}
    assert types == {
        "f32": ("float32", "float32", 32),
        "bf16": ("bfloat16", "bfloat16", 16),
        "w8a8": ("int8", "int8", 8),
        "w4a8": ("int4", "int8", 4),
        "w4a8_g64": ("int4_g64", "int8", 4),
        "w8a8_dyn": ("int8", "int8_dyn", 8),
        "w4a8_g64_dyn": ("int4_g64", "int8_dyn", 4),
        "w4a16_g128": ("int4_g128", "float32", 4),
    }
    assert [scheme.group_size for scheme in SCHEMES.values()] == [None] * 4 + [64, None, 64, 128]
    weight, act = SCHEMES["w4a8"].weight, SCHEMES["w4a8"].act
    assert weight is not None
    assert act is not None
    assert (weight.qtype.bits, weight.axis, weight.symmetric) == (4, 0, True)
    assert (act.qtype.bits, act.axis, act.symmetric) == (8, None, False)


def test_schemes_are_parsed_in_their_own_order() -> None:
    assert [scheme.name for scheme in parse_schemes(None)] == list(SCHEMES)
    assert [scheme.name for scheme in parse_schemes(["w4a8", "f32", "w4a8"])] == ["f32", "w4a8"]
    assert [scheme.name for scheme in parse_schemes("w8a8")] == ["w8a8"]


@pytest.mark.parametrize("names", [["int8"], ["w8a8", "W4A8"], "w2a8", []])
def test_unknown_scheme_is_refused(names: Any) -> None:
    with pytest.raises(HwqError, match="f32, bf16, w8a8, w4a8") as caught:
        parse_schemes(names)
    assert caught.value.code == "scheme-unknown"


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEMES["f32"].name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("drop", -0.1),
        ("drop", math.nan),
        ("latency_s", 0),
        ("latency_s", -1.0),
        ("latency_s", "3ms"),
        ("weight_bytes", 0),
        ("weight_bytes", math.nan),
    ],
)
def test_bad_budget_is_refused(field: str, value: Any) -> None:
    with pytest.raises(HwqError, match=f"budget {field} is .*accepted") as caught:
        Budget(**{field: value})
    assert caught.value.code == "budget-invalid"


def test_budget_may_leave_anything_free() -> None:
    assert Budget() == Budget(drop=None, latency_s=None, weight_bytes=None)
    assert Budget(drop=0, latency_s=1e-3, weight_bytes=10).drop == 0


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(HwqError("some-code", "what was wrong")))
    assert (error.code, error.message, str(error)) == ("some-code", "what was wrong", "what was wrong")
