"""The plan: a scheme for every layer, with what was predicted and why; a JSON file made to be read and edited.

One line a layer, then one line a tensor with its integer range. A user who edits it changes schemes; the predictions
beside them are then still those of the old choice, and a layer in another scheme is rounded to nearest. Refused, with
file, key and value: whatever does not parse.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hwq.errors import HwqError
from hwq.files import write_atomic
from hwq.lengths import Dynamic, check_dynamic
from hwq.numerics import INT8, QParams
from hwq.scheme import SCHEMES, Cost

FORMAT = 1
_HEAD = ("format", "model", "target", "threads", "latency_s", "weight_bytes", "loss")
_NOISE = "noise_per_loss"
_DYNAMIC = "dynamic"
_COST = ("latency_s", "interval_s", "source", "weight_bytes", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Schemes of a network's layers, in its order; totals are predictions, conversions included.

    model: the fingerprint of the network that the layers belong to. target: the machine, as ``Target.known_as`` names
    it: one of a file of the user's has to be given again where the plan is built. threads: the worker
    threads that prices are for. layers: each layer's predicted cost and loss, where there is a prediction. why: the
    reason in words. qparams: of each tensor that an integer scheme needs. means: of each channel of the tensors that
    weights read, where biases are corrected by them. roundings: layer -> (scheme, text), where weights in that scheme
    are not rounded to nearest: see ``quantize.write_rounding``. smoothing: layer -> the exponent of two that each of
    its channels is divided by: see ``hwq.smooth``. dynamic: axes whose lengths vary, as
    ``hwq.compile`` takes them; predictions are then those of the most.
    """

    model: str
    target: str
    threads: int
    schemes: Mapping[str, str]
    latency_s: float
    weight_bytes: int
    loss: float
    layers: Mapping[str, tuple[Cost, float]] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)
    qparams: Mapping[str, QParams] = field(default_factory=dict)
    means: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    roundings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    smoothing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    noise_per_loss: float = 1.0
    dynamic: Dynamic = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values; the inverse of ``from_dict``."""
        layers = {}
        for name, scheme in self.schemes.items():
            layers[name] = {"scheme": scheme}
            if name in self.layers:
                cost, loss = self.layers[name]
                layers[name] |= dict(zip(_COST, _cost_values(cost, loss), strict=True))
            layers[name]["why"] = self.why.get(name, "")
        totals = (float(self.latency_s), int(self.weight_bytes), float(self.loss))
        head = (FORMAT, self.model, self.target, self.threads, *totals)
        qparams = {name: {"scale": q.scale, "zero_point": q.zero_point} for name, q in self.qparams.items()}
        means = {name: [float(value) for value in values] for name, values in self.means.items()}
        roundings = {name: {"scheme": scheme, "text": text} for name, (scheme, text) in self.roundings.items()}
        blocks = {"layers": layers, "qparams": qparams, "means": means, "roundings": roundings}
        if self.smoothing:
            blocks["smoothing"] = {name: list(values) for name, values in self.smoothing.items()}
        if self.dynamic:
            blocks[_DYNAMIC] = {
                name: {str(axis): list(pair) for axis, pair in axes.items()} for name, axes in self.dynamic.items()
            }
        return dict(zip(_HEAD, head, strict=True)) | {_NOISE: float(self.noise_per_loss)} | blocks

    @classmethod
    def from_dict(cls, data: Any, source: str = "the plan") -> Plan:
        """The plan in ``data``, every value checked; ``source`` names it in errors.

        Raises HwqError "plan-invalid" (key, value, what is accepted), "scheme-unknown" for a layer's scheme, and
        "dynamic-invalid".
        """
        _check_keys(data, source, (*_HEAD, "layers", "qparams"), ("means", "roundings", "smoothing", _NOISE, _DYNAMIC))
        if data["format"] != FORMAT:
            _refuse(f"{source}: format", data["format"], str(FORMAT))
        layers, qparams, means = data["layers"], data["qparams"], data.get("means", {})
        if not isinstance(layers, dict):
            _refuse(f"{source}: layers", layers, 'an object {"layer": {"scheme": ...}, ...}')
        if not isinstance(qparams, dict):
            _refuse(f"{source}: qparams", qparams, 'an object {"tensor": {"scale": ..., "zero_point": ...}, ...}')
        if not isinstance(means, dict):
            _refuse(f"{source}: means", means, 'an object {"tensor": [a number for each channel, ...], ...}')
        where = {name: f"{source}: layer {name!r}" for name in layers}
        roundings = data.get("roundings", {})
        if not isinstance(roundings, dict):
            _refuse(f"{source}: roundings", roundings, 'an object {"layer": {"scheme": ..., "text": ...}, ...}')
        smoothing = data.get("smoothing", {})
        if not isinstance(smoothing, dict):
            _refuse(
                f"{source}: smoothing", smoothing, 'an object {"layer": [a whole number for each channel, ...], ...}'
            )
        costs = {name: _cost(layer, where[name]) for name, layer in layers.items()}
        return cls(
            model=_text(data["model"], f"{source}: model"),
            target=_text(data["target"], f"{source}: target"),
            threads=_whole(data["threads"], f"{source}: threads", 1),
            schemes={name: _scheme(layer["scheme"], where[name]) for name, layer in layers.items()},
            latency_s=_number(data["latency_s"], f"{source}: latency_s"),
            weight_bytes=_whole(data["weight_bytes"], f"{source}: weight_bytes"),
            loss=_number(data["loss"], f"{source}: loss"),
            noise_per_loss=_number(data.get(_NOISE, 1.0), f"{source}: {_NOISE}"),
            layers={name: cost for name, cost in costs.items() if cost is not None},
            why={name: _text(layer.get("why", ""), f"{where[name]}: why") for name, layer in layers.items()},
            qparams={name: _qparams(value, f"{source}: qparams {name!r}") for name, value in qparams.items()},
            means={name: _means(values, f"{source}: means {name!r}") for name, values in means.items()},
            roundings={name: _rounding(value, f"{source}: roundings {name!r}") for name, value in roundings.items()},
            smoothing={name: _exponents(values, f"{source}: smoothing {name!r}") for name, values in smoothing.items()},
            dynamic=check_dynamic(data[_DYNAMIC]) if _DYNAMIC in data else {},
        )

    def check_layers(self, names: Collection[str]) -> None:
        """Hold the plan against a network whose layers are ``names``.

        Raises HwqError "plan-layers" for a layer that the network lacks, and for one that the plan lacks.
        """
        for name in self.schemes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                accepted = f"did you mean {near[0]!r}?" if near else f"accepted: its layers, {_some(names)}"
                raise HwqError("plan-layers", f"the plan names layer {name!r}, which the model lacks; {accepted}")
        missing = [name for name in names if name not in self.schemes]
        if missing:
            raise HwqError(
                "plan-layers", f"the plan lacks {_some(missing)} of the model; accepted: one line for every layer"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, one line a layer. Raises HwqError "save-failed"; no half file stays."""
        data = self.to_dict()
        lines = [f"  {json.dumps(key)}: {json.dumps(data[key])}," for key in (*_HEAD, _NOISE)]
        blocks = [f"  {json.dumps(key)}: {_lines(data[key])}" for key in data if isinstance(data[key], dict)]
        write_atomic(path, "\n".join(["{", *lines, ",\n".join(blocks), "}", ""]).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a saved or edited plan. Raises HwqError "plan-missing", and what ``from_dict`` raises."""
        try:
            text = Path(path).read_bytes().decode()
        except OSError as error:
            raise HwqError("plan-missing", f"cannot read the plan {os.fspath(path)!r}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise HwqError("plan-invalid", f"{os.fspath(path)} is not UTF-8 text; accepted: a plan's JSON") from error
        try:
            data = json.loads(text, object_pairs_hook=_without_repeats)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise HwqError("plan-invalid", f"{os.fspath(path)} is not JSON at {where}: {error.msg}") from error
        except RecursionError as error:
            raise HwqError(
                "plan-invalid", f"{os.fspath(path)} is nested too deeply; accepted: a plan's JSON"
            ) from error
        except _RepeatError as error:
            raise HwqError("plan-invalid", f"{os.fspath(path)} has the key {error} twice; accepted: once") from error
        return cls.from_dict(data, os.fspath(path))


def _lines(values: Mapping[str, Any]) -> str:
    """A JSON object with one line a key."""
    rows = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return f"{{\n{rows}\n  }}" if rows else "{}"


def _some(names: Collection[str]) -> str:
    """The first of ``names``, and how many more there are."""
    shown = ", ".join(repr(name) for name in list(names)[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cost_values(cost: Cost, loss: float) -> tuple[Any, ...]:
    low, high = cost.interval_s
    return float(cost.latency_s), [float(low), float(high)], cost.source, int(cost.weight_bytes), float(loss)


class _RepeatError(ValueError):
    """A key that a JSON object has twice, of which Python would silently keep the last."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatError(repr(key))
        found[key] = value
    return found


def _refuse(where: str, value: Any, accepted: str) -> NoReturn:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    raise HwqError("plan-invalid", f"{where} is {shown}; accepted: {accepted}")


def _check_keys(data: Any, where: str, keys: Collection[str], optional: Collection[str] = ()) -> None:
    accepted = ", ".join((*keys, *optional))
    if not isinstance(data, dict):
        _refuse(where, data, f"an object with the keys {accepted}")
    for key in data:
        if key not in keys and key not in optional:
            raise HwqError("plan-invalid", f"{where}: key {key!r} is not known; accepted: {accepted}")
    for key in keys:
        if key not in data:
            raise HwqError("plan-invalid", f"{where}: key {key!r} is missing; accepted: {accepted}")


def _scheme(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in SCHEMES:
        raise HwqError("scheme-unknown", f"{where}: scheme is {json.dumps(value)}; accepted: {', '.join(SCHEMES)}")
    return value


def _cost(layer: Any, where: str) -> tuple[Cost, float] | None:
    """A layer's prediction, which is there with all of its keys or not at all."""
    _check_keys(layer, where, ("scheme",), (*_COST, "why"))
    if not any(key in layer for key in _COST):
        return None
    _check_keys(layer, where, ("scheme", *_COST), ("why",))
    interval = layer["interval_s"]
    if not isinstance(interval, list) or len(interval) != 2:
        _refuse(f"{where}: interval_s", interval, "a list of two numbers")
    low, high = (_number(value, f"{where}: interval_s") for value in interval)
    cost = Cost(
        latency_s=_number(layer["latency_s"], f"{where}: latency_s"),
        weight_bytes=_whole(layer["weight_bytes"], f"{where}: weight_bytes"),
        source=_text(layer["source"], f"{where}: source"),
        interval_s=(low, high),
    )
    return cost, _number(layer["loss"], f"{where}: loss")


def _qparams(value: Any, where: str) -> QParams:
    _check_keys(value, where, ("scale", "zero_point"))
    scale, zero_point = _number(value["scale"], f"{where}: scale"), value["zero_point"]
    if scale <= 0:
        _refuse(f"{where}: scale", scale, "a positive number")
    if isinstance(zero_point, bool) or not isinstance(zero_point, int) or not INT8.qmin <= zero_point <= INT8.qmax:
        _refuse(f"{where}: zero_point", zero_point, f"a whole number from {INT8.qmin} to {INT8.qmax}")
    return QParams(scale=scale, zero_point=zero_point)


def _means(values: Any, where: str) -> tuple[float, ...]:
    if not isinstance(values, list):
        _refuse(where, values, "a list of numbers")
    return tuple(_number(value, where) for value in values)


def _exponents(values: Any, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in values):
        _refuse(where, values, "a list of whole numbers")
    return tuple(values)


def _rounding(value: Any, where: str) -> tuple[str, str]:
    _check_keys(value, where, ("scheme", "text"))
    return _scheme(value["scheme"], where), _text(value["text"], f"{where}: text")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(where, value, "a finite number")
    return float(value)


def _whole(value: Any, where: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _refuse(where, value, f"a whole number of at least {least}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        _refuse(where, value, "a text in quotes")
    return value
