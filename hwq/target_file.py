"""Read one machine's .toml strictly: plain values out, or an HwqError that names file, key, value and what is accepted.

Every number stands beside its source: ``clock_hz = { value = 2.6e9, source = "..." }``; a ``[[compute]]`` row has one
``source`` for its rate. This file knows the format only; what the values mean is in ``hwq.target``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwq.address import LOCAL, REMOTE, read_device
from hwq.errors import HwqError
from hwq.graph import ANCHORS, INTEGER_OPS, TRANSFORMER_OPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What the operators of a compute row may be; "*" is all of them.
OPS = (
    *("*", *ANCHORS, *INTEGER_OPS, "softmax", "layer_norm", "reduce", "transpose", "quantize", "dequantize", "float"),
    *TRANSFORMER_OPS,
    *("append", "append_int8", "attention_cache", "rows_at"),
)
# The instruction a row's kernels are built on. "*.vector" is plain vector arithmetic and moves, "generic.table" a
# table look-up, and "generic.*" whatever the compiler finds on any machine.
INSTRUCTIONS = (
    "generic.mul",
    "generic.fma",
    "generic.vector",
    "generic.table",
    "avx2.vpmaddwd",
    "avx2.fma",
    "avx2.vector",
    "avx.vpdpbusd",
    "avx.vpdpwssd",
    "avx512.vpdpbusd",
    "avx512.vpdpwssd",
    "avx512.vdpbf16ps",
    "avx512.fma",
    "avx512.vector",
    "amx.tdpbusd",
    "amx.tdpbssd",
    "amx.tdpbf16ps",
    "neon.smlal",
    "neon.sdot",
    "neon.smmla",
    "neon.fmla",
    "neon.vector",
    "cuda.dp4a",
    "cuda.mma.m8n8k16.s8",
    "cuda.mma.m8n8k32.s4",
    "cuda.mma.m16n8k32.s8",
    "cuda.fma",
    "cuda.vector",
)
KINDS = ("llvm", "cuda")
WEIGHTS = ("none", "int8", "int4", "int4_g64", "int4_g128", "bfloat16", "float32")
# Activations, each with the weights that are multiplied with them.
ACTS = {
    "int8": ("none", "int8", "int4", "int4_g64"),
    "int8_dyn": ("int8", "int4_g64"),
    "bfloat16": ("bfloat16",),
    "float32": ("float32", "int4_g128"),
}

# Keys of [target] with their types; a key with "?" may be left out.
_STRINGS = {"name": None, "description": None, "kind": KINDS, "mtriple?": None, "mcpu": None, "device": None}
_CHOICES = {"activation_storage": ("uint8", "int8"), "requantize": ("float32",)}
_LISTS = ("mattr", "cpu_flags")
_COUNTS = ("cores", "vector_bits", "l1_bytes", "l2_bytes", "l3_bytes?")
_RATES = ("clock_hz", "l2_bytes_per_s", "l3_bytes_per_s?", "memory_bytes_per_s", "parallel_overhead_s")
_ROW = ("ops", "weight", "act", "instruction", "macs_per_cycle", "native", "schedules", "source")


def _error(where: str, key: str, value: object, accepted: str) -> HwqError:
    return HwqError("target-invalid", f"target file {where}: {key} is {value!r}; accepted: {accepted}")


def _keys(where: str, section: str, table: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise for a key that is not in ``allowed``, or one of ``allowed`` without "?" that is missing."""
    names = [name.rstrip("?") for name in allowed]
    for key in table:
        if key not in names:
            raise HwqError(
                "target-invalid",
                f"target file {where}: unknown key {section}{key} (value {table[key]!r}); accepted: {', '.join(names)}",
            )
    missing = [name for name in allowed if not name.endswith("?") and name not in table]
    if missing:
        listed = ", ".join(section + name for name in missing)
        raise HwqError("target-invalid", f"target file {where}: missing key {listed}; every target file must give it")


def _string(where: str, key: str, value: object, choices: Sequence[str] | None = None) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _error(where, key, value, f"one of {', '.join(choices)}" if choices else "a non-empty text")
    if choices is not None and value not in choices:
        raise _error(where, key, value, f"one of {', '.join(choices)}")
    return value


def _strings(where: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _error(where, key, value, 'a list of texts, such as ["a", "b"] or []')
    return tuple(value)


def _boolean(where: str, key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _error(where, key, value, "true or false")
    return value


def _number(where: str, key: str, value: object, *, whole: bool) -> float:
    """A positive finite number; an int if ``whole``."""
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    wanted = "a positive whole number" if whole else "a positive number"
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise _error(where, key, value, wanted)
    assert isinstance(value, int | float)
    if not math.isfinite(value) or value <= 0:
        raise _error(where, key, value, wanted)
    return value


def _sourced(where: str, key: str, value: object, *, whole: bool) -> tuple[float, str]:
    """The number and the source of ``{ value = ..., source = "..." }``."""
    if not isinstance(value, dict):
        raise _error(where, key, value, f'{{ value = {"4" if whole else "2.5e9"}, source = "manual or command" }}')
    _keys(where, f"{key}.", value, ("value", "source"))
    number = _number(where, f"{key}.value", value["value"], whole=whole)
    return number, _string(where, f"{key}.source", value["source"])


def _compute_row(where: str, index: int, row: object, known_schedules: Sequence[str]) -> dict[str, Any]:
    name = f"compute[{index}]"
    if not isinstance(row, dict):
        raise _error(where, name, row, "a [[compute]] table")
    _keys(where, f"{name}.", row, _ROW)
    ops = _strings(where, f"{name}.ops", row["ops"])
    for op in ops:
        _string(where, f"{name}.ops", op, OPS)
    if not ops:
        raise _error(where, f"{name}.ops", [], f"at least one of {', '.join(OPS)}")
    schedules = _strings(where, f"{name}.schedules", row["schedules"])
    for schedule in schedules:
        if schedule not in known_schedules:
            accepted = f"a file of schedules/: {', '.join(known_schedules) or 'none yet'}"
            raise _error(where, f"{name}.schedules", schedule, accepted)
    weight = _string(where, f"{name}.weight", row["weight"], WEIGHTS)
    act = _string(where, f"{name}.act", row["act"], tuple(ACTS))
    if weight not in ACTS[act]:
        accepted = "; ".join(f"one of {', '.join(weights)} for {acts}" for acts, weights in ACTS.items())
        raise _error(where, f"{name}.weight", weight, f"{accepted} activations")
    return {
        "ops": ops,
        "weight": weight,
        "act": act,
        "instruction": _string(where, f"{name}.instruction", row["instruction"], INSTRUCTIONS),
        "macs_per_cycle": float(_number(where, f"{name}.macs_per_cycle", row["macs_per_cycle"], whole=False)),
        "native": _boolean(where, f"{name}.native", row["native"]),
        "schedules": schedules,
        "source": _string(where, f"{name}.source", row["source"]),
    }


def read_target_file(path: Path, schedules_at: Path) -> dict[str, Any]:
    """The fields of ``hwq.target.Target``, as plain values (``compute`` is a tuple of dicts, ``sources`` of pairs).

    Raises HwqError "target-missing" for a file that cannot be read, "target-invalid" for anything wrong in it.
    """
    where = str(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise HwqError("target-missing", f"target file {where} cannot be read ({reason}); give a .toml file") from error
    except UnicodeDecodeError as error:
        raise HwqError("target-invalid", f"target file {where} is not UTF-8: {error}; give a .toml file") from error
    except tomllib.TOMLDecodeError as error:
        raise HwqError("target-invalid", f"target file {where} is not valid TOML: {error}") from error
    _keys(where, "", table, ("target", "compute"))
    target, rows = table["target"], table["compute"]
    if not isinstance(target, dict):
        raise _error(where, "target", target, "a [target] table")
    _keys(where, "target.", target, (*_STRINGS, *_CHOICES, *_LISTS, "builds", *_COUNTS, *_RATES))
    values: dict[str, Any] = {"builds": _boolean(where, "target.builds", target["builds"])}
    for key, choices in {**_STRINGS, **_CHOICES}.items():
        if key.rstrip("?") in target:
            values[key.rstrip("?")] = _string(where, f"target.{key.rstrip('?')}", target[key.rstrip("?")], choices)
    try:
        read_device(values["device"])
    except HwqError as error:
        raise _error(where, "target.device", values["device"], f"{LOCAL}, {REMOTE}") from error
    for key in _LISTS:
        values[key] = _strings(where, f"target.{key}", target[key])
    sources = []
    for key in (*_COUNTS, *_RATES):
        plain = key.rstrip("?")
        if plain in target:
            number, source = _sourced(where, f"target.{plain}", target[plain], whole=key in _COUNTS)
            values[plain] = number if key in _COUNTS else float(number)
            sources.append((plain, source))
    if ("l3_bytes" in target) != ("l3_bytes_per_s" in target):
        raise _error(where, "target.l3_bytes", target.get("l3_bytes"), "l3_bytes and l3_bytes_per_s, both or neither")
    if not isinstance(rows, list) or not rows:
        raise _error(where, "compute", rows, "at least one [[compute]] table")
    files = (path.relative_to(schedules_at) for path in sorted(schedules_at.rglob("*.py")) if path.stem != "__init__")
    known = [file.with_suffix("").as_posix() for file in files]
    values["compute"] = tuple(_compute_row(where, index, row, known) for index, row in enumerate(rows))
    values["sources"] = tuple(sources)
    return values
