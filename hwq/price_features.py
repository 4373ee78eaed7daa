"""Price features: what the time of a kernel may depend on, as numbers that a regression can be trained on.

Each kernel has a base, the time that written models expect: the larger of what the schedule's own model of its tiles
says (or, where it has none, the roofline's arithmetic), and of its bytes from where they are; plus a call. Learned is
the ratio of what is measured to that base. Features are ratios and logarithms of sizes, so that they mean the same
for every machine; a machine's own rates enter by its target file.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hwq import cost
from hwq.graph import ANCHORS, Activation
from hwq.schedules.arm import smmla_plan
from hwq.schedules.cpu import conv2d_plan, dense, depthwise, geometry, tiling
from hwq.schedules.generic.common import worth_parallel, worth_threads
from hwq.schedules.x86 import winograd, winograd_tiling
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Workload

OPS = (
    *ANCHORS,
    *("max_pool2d", "avg_pool2d", "add", "multiply", "unary", "concat", "quantize", "dequantize", "transpose"),
    *("softmax", "layer_norm", "pad", "slice", "resize_nearest", "resize_linear"),
    *("rms_norm", "rope", "gather"),
    *("append", "rows_at", "attention"),
    "reduce",
    *("row_scale", "quantize_rows"),
    *("append_int8", "attention_cache"),
)
# Their places are categories of the shipped model: what is new comes last.
FAMILIES = (
    *(
        "cpu/conv2d",
        "x86/winograd",
        "cpu/dense",
        "cpu/grouped",
        "cpu/depthwise",
        "x86/depthwise_dot",
        "x86/amx",
        "x86/picture",
    ),
    *("x86/binary", "x86/table", "generic/resize", "generic/binary", "generic/unary", "generic/pool", "generic/boxes"),
    *("generic/gather", "generic/quantize", "generic/transpose", "generic/softmax", "generic/layer_norm"),
    *("arm/smmla", "arm/table"),
    *("generic/rms_norm", "generic/rope", "generic/embedding"),
    *("generic/position", "cpu/attention"),
    "generic/reduce",
    "cpu/weight_only",
    "generic/rows",
    "cpu/attention_cache",
)
HOMES = ("l2", "l3", "memory")
KINDS = (
    "none",
    "relu",
    "clip",
    "leaky_relu",
    "hard_swish",
    "hard_sigmoid",
    "sigmoid",
    "silu",
    "tanh",
    "gelu",
    "gelu_tanh",
)
FEATURES = (
    *("op", "family", "home", "integer", "weight_bits", "group_size", "float_out", "kind", "table", "residual"),
    *("macs", "moved", "weights", "outputs", "inputs", "reduction", "channels_out", "channels_in", "pixels", "width"),
    *("taps", "stride", "padded", "groups", "fill_16", "fill_64", "over_4", "over_16", "rows_16", "parallel"),
    *("base", "roofline", "arithmetic", "bytes", "arrival", "modelled", "intensity", "epilogue"),
    *("copied", "ragged", "tile"),
    *("vector_bits", "rate", "native", "clock", "l2", "l3", "l2_rate", "l3_rate", "memory_rate"),
)
# What a vector of outputs of a depthwise kernel takes beside its taps: its bias, activation and store.
_VECTOR_CYCLES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A kernel's base in seconds, and its FEATURES in order."""

    base_s: float
    features: tuple[float, ...]


def describe(workload: Workload, schedule: str, home: str, target: Target) -> Described:
    """The features of ``workload`` as made by ``schedule`` ("cpu/conv2d:7"), its weights in ``home`` (of HOMES)."""
    macs, moved, weights = cost.op_macs(workload), cost.moved_bytes(workload), cost.weight_bytes(workload)
    home = home if weights >= cost.SMALL_WEIGHTS_BYTES else "l2"
    family = schedule.split(":")[0].split("#")[0]
    scheme = SCHEMES[workload.scheme]
    integer = (scheme.integer and workload.op in ANCHORS) or scheme.domain == "int8"
    workers = max(1, min(workload.parallel, target.cores))
    arithmetic_s = cost.compute_s(workload, target)
    model = modelled(workload, family, target)
    epilogue_s = transcendental_s(workload, target)
    modelled_s = arithmetic_s if model is None else model.cycles / target.clock_hz + epilogue_s
    if not _split(workload, workers, arithmetic_s, model, target):
        workers = 1
    bytes_s = moved / cost.bytes_per_s(moved, target, workers)
    arrival_s = min(weights, moved) / _home_rate(home, target, workers)
    overhead_s = cost.CALL_OVERHEAD_S + (target.parallel_overhead_s if workers > 1 else 0.0)
    base_s = max(modelled_s / workers, bytes_s, arrival_s) + overhead_s
    outputs = math.prod(workload.output_shape)
    inputs = sum(math.prod(shape) for shape in workload.input_shapes)
    channels_out, channels_in = workload.output_shape[-1], workload.input_shapes[0][-1]
    pixels = max(1, outputs // channels_out)
    width = workload.output_shape[-2] if len(workload.output_shape) > 2 else pixels
    attrs = dict(workload.attrs)
    row = target.instruction(workload.op, scheme.weight_type, scheme.act_type)
    kind = workload.activation.kind
    values = (
        *(_index(OPS, workload.op), _index(FAMILIES, family), _index(HOMES, home), integer, scheme.weight_bits),
        *(scheme.group_size or 0, workload.out_dtype == "float32", _index(KINDS, kind)),
        *(scheme.domain == "int8" and not workload.activation.clamps, workload.residual),
        *(_log(macs), _log(moved), _log(weights), _log(outputs), _log(inputs)),
        *(_log(macs / max(1, outputs)), _log(channels_out), _log(channels_in), _log(pixels), _log(width)),
        *(math.prod(attrs.get("kernel", (1,))), max(attrs.get("strides", (1,))), any(attrs.get("padding", ()))),
        *(attrs.get("groups", 1) > 1, _fill(channels_out, 16), _fill(channels_out, 64), channels_in % 4 != 0),
        *(channels_in % 16 != 0, _fill(pixels, 16), workers if workload.parallel > 1 else 0),
        *(_log(base_s), _log(cost.price_roofline(workload, target, workers).latency_s / base_s)),
        *(_log(arithmetic_s / workers / base_s), _log(bytes_s / base_s), _log(arrival_s / base_s)),
        *(-1.0 if model is None else _log(modelled_s / max(arithmetic_s, 1e-12)), _log(macs / max(1, moved))),
        *(epilogue_s / base_s, *((-1, -1, 0) if model is None else (model.copied, model.ragged, model.tile))),
        *(target.vector_bits, 0.0 if row is None else _log(row.macs_per_cycle), row is None or row.native),
        *(_log(target.clock_hz), _log(target.l2_bytes), _log(target.l3_bytes)),
        *(_log(target.l2_bytes_per_s / target.clock_hz), _log(target.l3_bytes_per_s / target.clock_hz)),
        _log(target.memory_bytes_per_s / target.clock_hz),
    )
    assert len(values) == len(FEATURES)
    return Described(base_s=base_s, features=tuple(float(value) for value in values))


def _split(workload: Workload, workers: int, arithmetic_s: float, model: Modelled | None, target: Target) -> bool:
    """Whether the schedules split it over threads: anchors by their products or weights, others by their bytes."""
    if workload.op in cost.SERIAL:
        return False
    if workload.op in ("attention", "attention_cache"):
        return worth_threads(workers, arithmetic_s, target)
    if workload.op not in ANCHORS:
        return worth_parallel(workers, cost.moved_bytes(workload), target)
    far = target.l3_bytes_per_s or target.memory_bytes_per_s
    arrival_s = cost.weight_bytes(workload) / far if workload.op == "dense" else 0.0
    direct_s = 0.0 if model is None else model.direct / target.clock_hz
    return worth_threads(workers, max(direct_s or arithmetic_s, arrival_s), target)


def shape_of(workload: Workload) -> str:
    """A text that workloads of the same layer share whatever their scheme, activation, residual and threads are.

    Records of one such group are near-duplicates: what is learned from some of them must be judged on others.
    """
    return json.dumps(
        [workload.op, workload.input_shapes[0], workload.output_shape, dict(workload.attrs).get("kernel")]
    )


def workload_of(key: str) -> Workload:
    """The workload of a ``Workload.key``. Raises ValueError, KeyError or TypeError for a text that is none."""
    values: dict[str, Any] = json.loads(key)
    return Workload(
        **{
            **values,
            "input_shapes": tuple(map(tuple, values["input_shapes"])),
            "output_shape": tuple(values["output_shape"]),
            "attrs": tuple((name, _frozen(value)) for name, value in values["attrs"]),
            "activation": Activation(**values["activation"]),
        }
    )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# What the schedules' own models expect


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelled:
    """A schedule's plan. cycles: of the whole call on one core. copied: it copies its input first. ragged: channels do
    not fill its vectors. tile: sums in registers. direct: what a kernel of every product would take, where this one has
    fewer."""

    cycles: float
    copied: bool
    ragged: bool
    tile: int
    direct: float = 0.0


def modelled(workload: Workload, family: str, target: Target) -> Modelled | None:
    """What the schedule's model of its tiles expects; None for a family that has none."""
    model = _MODELS.get(family)
    found = None if model is None else geometry.form(workload, target)
    return None if model is None or found is None else model(workload, target, found)


def transcendental_s(workload: Workload, target: Target) -> float:
    """Seconds of an exponential or a tanh for every output of an anchor in float; 0 where there is none."""
    plain = replace(workload, activation=Activation())
    alike = replace(plain, op="conv2d") if workload.op == "depthwise_conv2d" else plain
    if workload.op not in ANCHORS:
        return 0.0
    tabled = replace(alike, activation=workload.activation)
    return cost.compute_s(tabled, target) - cost.compute_s(alike, target)


def _conv2d(workload: Workload, target: Target, found: geometry.Form) -> Modelled:
    core = conv2d_plan.core_of(workload, found, target)
    plan = conv2d_plan.make_plan(workload, found, core)
    tile = plan.tile
    cycles = tiling.cycles(plan.geometry, found, core, tile)
    sums = tile.rows * tile.pixels * tile.vectors
    return Modelled(cycles=cycles, copied=plan.copied, ragged=plan.ragged, tile=sums)


def _winograd(workload: Workload, target: Target, found: geometry.Form) -> Modelled:
    core, shape = conv2d_plan.core_of(workload, found, target), geometry.geometry(workload)
    plan = winograd.make_plan(workload, found, core, 1)
    table = not workload.activation.clamps
    cycles = winograd_tiling.cycles(shape, found, core, plan.blocking, 1, table=table)
    tile = plan.blocking.tiles * plan.blocking.vectors
    direct = tiling.cycles(shape, found, core, tiling.best_tile(shape, found, core))
    return Modelled(cycles=cycles, copied=True, ragged=plan.ragged, tile=tile, direct=direct)


def _dense(workload: Workload, target: Target, found: geometry.Form) -> Modelled:
    plan = dense.make_plan(workload, found)
    vectors = math.ceil(plan.channels / plan.lanes)
    cycles = plan.steps * dense.cycles(found, plan.count, vectors, plan.rows, plan.vectors)
    ragged = plan.channels % (plan.lanes * plan.vectors) != 0
    return Modelled(cycles=cycles, copied=plan.copied, ragged=ragged, tile=plan.rows * plan.vectors)


def _depthwise(workload: Workload, target: Target, found: geometry.Form) -> Modelled:
    """A load and a multiply-add for each tap and vector, and a vector's epilogue; the copy of the input."""
    plan = depthwise.make_plan(workload, found)
    shape = plan.geometry
    vectors = shape.batch * shape.out_h * plan.out_w * plan.blocks
    share = max(plan.lanes / found.vectors[0], 0.5)
    copied = plan.copied and not plan.inlined
    copy = (
        shape.batch * shape.rows(shape.out_h) * plan.row * plan.form.item_bytes / tiling.COPY_BYTES if copied else 0.0
    )
    cycles = vectors * share * (plan.taps + _VECTOR_CYCLES) + copy
    return Modelled(cycles=cycles, copied=copied, ragged=plan.ragged, tile=plan.pixels)


@functools.lru_cache(maxsize=1024)
def _smmla(workload: Workload, target: Target, found: geometry.Form) -> Modelled:
    """The model's best tile; beside its cycles the copy of the input, which all tiles share."""
    expected, plan = smmla_plan.ranked(smmla_plan.plans_of(workload), target)[0]
    copy = plan.copied_bytes / tiling.COPY_BYTES
    return Modelled(cycles=expected + copy, copied=True, ragged=plan.ragged, tile=plan.tile.sums)


_MODELS: dict[str, Callable[[Workload, Target, geometry.Form], Modelled]] = {
    "cpu/conv2d": _conv2d,
    "x86/winograd": _winograd,
    "cpu/dense": _dense,
    "cpu/depthwise": _depthwise,
    "arm/smmla": _smmla,
}


def _home_rate(home: str, target: Target, workers: int) -> float:
    rates = {"l2": target.l2_bytes_per_s * workers, "l3": target.l3_bytes_per_s * workers}
    return rates.get(home) or target.memory_bytes_per_s


def _log(value: float) -> float:
    return math.log2(max(value, 2.0**-20))


def _fill(count: int, unit: int) -> float:
    """The share of whole units that ``count`` fills."""
    return count / (math.ceil(count / unit) * unit)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1
