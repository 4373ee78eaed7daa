"""Price: what one kernel call costs on a target, in seconds and bytes: by roofline, or as a record has it.

Stands between sensitivity and assign. Roofline: a call takes the longer of computing and moving its bytes, plus what
every call costs. The rates are the target file's. Where those were measured on the machine at hand, 19 layers of common
networks in three schemes took 0.81 to 2.5 times their price, nine in ten of them 0.89 to 1.8. On a cousin of that
machine, or by rates from a manual, it is a guess, and the interval says so. A measured record of this kernel beats it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwq.graph import ANCHORS, Activation
from hwq.group_scales import group_count
from hwq.scheme import SCHEMES, Cost
from hwq.store import Record
from hwq.target import Target
from hwq.workload import Workload

# One call of a kernel from a network's "main", with what the kernel does on entry. Measured on Zen 4: networks of 40
# and 160 different kernels, of eight additions each, differ by 9 ns a kernel; by 7 where all call the same one.
CALL_OVERHEAD_S = 9e-9
# Weights of so few bytes are read where they are before it is felt where they were.
SMALL_WEIGHTS_BYTES = 32_000
# What a kernel takes inside a network, of what it takes alone, and seconds more, with 90%: so in 94% of 812 layers (19
# uniform assignments of four networks) on one thread, in 89% on two; the medians are 1.01 and 1.02 of the time alone.
IN_PLACE = (0.93, 1.2)
COLD_S = 1e-6
# How much faster (a core with two multiply ports where the file's has one) and slower than the file's rates a kernel
# may well be on a machine that the file fits.
FASTER = 2.0
SLOWER = 4.0
# Between sums of networks this factor apart a fit tells what every call costs from what all kernels take more.
APART = 1.5
# An exponential or a tanh in float is a polynomial and a division: so many multiply-adds an element.
_TRANSCENDENTAL_MACS = 20
_TRANSCENDENTAL = ("sigmoid", "silu", "tanh", "gelu", "gelu_tanh")
# Beside what a static scheme's sum takes to become a float, a dynamic one's is multiplied by its row's scale, and added
# to a bias that the static one's begins with.
_ROW_MACS = 3
# Their kernels know no threads: see ``hwq.schedules.generic.position``.
SERIAL = ("append", "append_int8", "rows_at")


def op_macs(workload: Workload) -> int:
    """Multiply-accumulates of one call; for pooling taps, for other operators output elements.

    convolutions: N * OH * OW * O * KH * KW * I / groups; dense: N * O * I.
    """
    out = math.prod(workload.output_shape)
    if workload.op in ANCHORS:
        return out * _reduction(workload)
    if workload.op in ("append", "append_int8", "row_scale"):
        return math.prod(workload.input_shapes[0])
    if workload.op == "attention_cache":
        keys, values = workload.input_shapes[1], workload.input_shapes[3]
        return (math.prod(keys) + math.prod(values)) * int(workload.attr("heads")) // int(workload.attr("kv_heads"))
    if workload.op == "attention":
        return _attention_macs(workload)
    if workload.op in ("max_pool2d", "avg_pool2d"):
        return out * int(math.prod(workload.attr("kernel")))
    if workload.op == "softmax" or (workload.op == "unary" and _is_transcendental(workload)):
        return out * _TRANSCENDENTAL_MACS
    return out


def weight_count(workload: Workload) -> int:
    """Elements of the weight tensor, O * KH * KW * I / groups, depthwise C * KH * KW, dense O * I, gather V * C; 0 for
    none."""
    if workload.op == "gather":
        return int(workload.attr("rows")) * workload.output_shape[-1]
    return workload.output_shape[-1] * _reduction(workload) if workload.op in ANCHORS else 0


def weight_bytes(workload: Workload) -> int:
    """Packed weights with what belongs to each output channel, of a gather to each row of its table.

    Integer: weights (int4: half a byte each) + 4 bytes of bias a channel + 4 of multiplier a channel, or group of
    it; in dynamic schemes 4 more a channel, what its sums start at. Float: 4 bytes each (bf16: 2) + 4 of bias a channel
    if there is a bias. Padding of the packed form is not in it.
    """
    count = weight_count(workload)
    if count == 0:
        return 0
    channels, scheme = workload.output_shape[-1], SCHEMES[workload.scheme]
    if workload.op == "gather":
        return int(workload.attr("rows")) * _row_bytes(workload)
    weights = -(-count * scheme.weight_bits // 8)
    if scheme.weight is None:
        return weights + (4 * channels if workload.has_bias else 0)
    groups = 1 if scheme.group_size is None else group_count(_reduction(workload), scheme.group_size)
    bias = 4 if scheme.integer or workload.has_bias else 0
    return weights + (bias + (4 if scheme.dynamic else 0) + 4 * groups) * channels


def _row_bytes(workload: Workload) -> int:
    """Bytes of a row of a gather's table, with its scales."""
    scheme, columns = SCHEMES[workload.scheme], workload.output_shape[-1]
    scales = 0 if scheme.weight is None else group_count(columns, scheme.group_size or columns)
    return -(-columns * scheme.weight_bits // 8) + 4 * scales


def moved_bytes(workload: Workload) -> int:
    """Bytes one call must read and write if each is touched once: inputs, weights, output."""
    source = 4 if SCHEMES[workload.scheme].domain == "f32" or workload.op == "quantize" else 1
    result = 4 if workload.out_dtype == "float32" else 1
    if workload.op == "append":  # of its output it writes what it reads
        return 2 * source * math.prod(workload.input_shapes[0])
    if workload.op == "append_int8":
        return (source + 1) * math.prod(workload.input_shapes[0])
    if workload.op == "attention_cache":
        keys, values = workload.input_shapes[1], workload.input_shapes[3]
        return math.prod(keys) + math.prod(values) + 8 * math.prod(workload.input_shapes[2])
    if workload.op == "gather":  # of its table it reads a row for each id
        ids = math.prod(workload.output_shape[:-1])
        return ids * (8 + _row_bytes(workload)) + result * math.prod(workload.output_shape)
    sizes = [math.prod(shape) for shape in workload.input_shapes]
    read = source * sum(sizes)
    if workload.op in ANCHORS and SCHEMES[workload.scheme].dynamic:
        read -= 3 * sizes[0]  # rows are bytes; scales and residual floats
    elif workload.op == "attention":  # its bias is of floats, and perhaps constant
        constant = dict(workload.attrs).get("bias")
        read += (4 - source) * sum(sizes[3:]) + (4 * math.prod(constant) if constant else 0)
    elif workload.float_residual:
        read += 3 * sizes[-1]
    return read + weight_bytes(workload) + result * math.prod(workload.output_shape)


def price_roofline(workload: Workload, target: Target, threads: int = 1) -> Cost:
    """What ``workload`` takes on ``threads`` of ``target``'s cores by the file's rates, called again and again.

    The interval's upper end lets the kernel be ``SLOWER`` and find nothing in any cache, as the first call does.
    """
    workers = 1 if workload.op in SERIAL else max(1, min(threads, target.cores))
    arithmetic_s = compute_s(workload, target) / workers
    total = moved_bytes(workload)
    overhead_s = CALL_OVERHEAD_S + (target.parallel_overhead_s if workers > 1 else 0.0)
    latency_s = max(arithmetic_s, total / bytes_per_s(total, target, workers)) + overhead_s
    slowest_s = max(SLOWER * arithmetic_s, total / target.memory_bytes_per_s) + overhead_s
    interval_s = (latency_s / FASTER, max(slowest_s, latency_s))
    return Cost(latency_s=latency_s, weight_bytes=weight_bytes(workload), source="roofline", interval_s=interval_s)


def float_output_s(workload: Workload, target: Target, threads: int = 1) -> float:
    """What an integer kernel takes longer where it writes float32 instead of int8, in seconds: the bytes more.

    They come on top, since sums and stores overlap little (ResNet-50's first layer: 160 us more for 2.4 MB more).
    """
    more = 3 * math.prod(workload.output_shape)
    workers = max(1, min(threads, target.cores))
    return more / bytes_per_s(moved_bytes(workload) + more, target, workers)


def price(
    workload: Workload, target: Target, threads: int = 1, record: Record | None = None, learned: Cost | None = None
) -> Cost:
    """What ``workload`` costs: as measured if there is a record of it on this target, else as ``learned`` from others
    (``hwq.learned_price``), else the roofline.

    The interval of a record is that of the kernel's time inside networks, between its neighbours.
    """
    if record is None:
        return learned or price_roofline(workload, target, threads)
    assert record.key.workload == workload.key, "a record of another workload"
    assert record.key.target == target.fingerprint, "a record of another machine"
    half = record.spread_s / 2
    least, most = IN_PLACE
    interval_s = (max(0.0, least * record.median_s - half), most * record.median_s + half + COLD_S)
    return Cost(
        latency_s=record.median_s, weight_bytes=weight_bytes(workload), source="measured", interval_s=interval_s
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFit:
    """What whole networks take beside the sum of their prices: t = scale * sum + offset_s.

    residual: the root mean square of measured / fitted - 1 over the ``count`` networks it was fitted to.
    """

    scale: float = 1.0
    offset_s: float = 0.0
    residual: float = 0.0
    count: int = 0

    def whole_s(self, sum_s: float) -> float:
        """The time of a network whose prices sum to ``sum_s``."""
        return self.scale * sum_s + self.offset_s


def fit_whole(pairs: Sequence[tuple[float, float]]) -> WholeFit:
    """The fit of (summed prices, measured time of the whole), in seconds, by least squares of relative errors.

    The offset is what a call costs beyond its kernels: never negative, and 0 unless there are three networks of which
    one is ``APART`` times another, without which nothing tells it from the scale. No pairs: the sum as it is.
    """
    assert all(0 < value < math.inf for pair in pairs for value in pair), pairs
    if not pairs:
        return WholeFit()
    sums, times = np.array(pairs, np.float64).T
    ratios = sums / times
    scale, offset_s = float(ratios.sum() / np.square(ratios).sum()), 0.0
    if len(pairs) >= 3 and sums.max() >= APART * sums.min():
        both, *_ = np.linalg.lstsq(np.stack([ratios, 1.0 / times], axis=1), np.ones(len(pairs)), rcond=None)
        if both[0] > 0 and both[1] > 0:
            scale, offset_s = float(both[0]), float(both[1])
    errors = times / (scale * sums + offset_s) - 1
    return WholeFit(scale=scale, offset_s=offset_s, residual=float(np.sqrt(np.square(errors).mean())), count=len(pairs))


def _reduction(workload: Workload) -> int:
    """How many products one output of an anchor sums."""
    depth = workload.input_shapes[0][-1]
    if workload.op == "dense":
        return depth
    taps = math.prod(workload.attr("kernel"))
    return int(taps) if workload.op == "depthwise_conv2d" else int(taps * depth // workload.attr("groups"))


def _attention_macs(workload: Workload) -> int:
    """Products of each query with the keys that it sees, and of shares with values: B * H * pairs * (D + E)."""
    (batch, queries, deep), (_, keys, _) = workload.input_shapes[:2]
    pairs = queries * keys
    if workload.attr("causal"):
        pairs -= min(queries, keys) * (min(queries, keys) - 1) // 2
    width = deep + workload.output_shape[-1]
    return int(batch * pairs * width)


def _is_transcendental(workload: Workload) -> bool:
    return workload.activation.kind in _TRANSCENDENTAL


def compute_s(workload: Workload, target: Target) -> float:
    """Seconds of arithmetic on one core: the products, then the epilogue of every output of an anchor."""
    scheme = SCHEMES[workload.scheme]
    row = target.instruction(workload.op, scheme.weight_type, scheme.act_type) or target.instruction(
        workload.op, "float32", "float32"
    )
    assert row is not None, f"{target.name} cannot compute {workload.op}; schemes_for says so"
    cycles = op_macs(workload) / row.macs_per_cycle
    if workload.op in ("conv2d", "dense"):
        # Of integers, requantizing costs an output what an integer add does, and a float takes no less; a float
        # epilogue is nothing but its activation. A depthwise row's rate has the epilogue in it: there is one for every
        # few products.
        outputs = math.prod(workload.output_shape)
        integers = target.instruction("add", "none", "int8") if scheme.integer else None
        floats = target.instruction(workload.op, "float32", "float32") if scheme.domain == "f32" else None
        if integers is not None:
            cycles += outputs / integers.macs_per_cycle
        if floats is not None:
            more = _TRANSCENDENTAL_MACS if _is_transcendental(workload) else 0
            more += _ROW_MACS if scheme.dynamic else 0
            cycles += more * outputs / floats.macs_per_cycle
    return cycles / target.clock_hz


def static_twin(workload: Workload) -> Workload:
    """What a dynamic dense ``workload`` does more than: the same products in the static scheme, written as float32."""
    rows, _, *residual = workload.input_shapes
    return replace(
        workload,
        scheme=workload.scheme.removesuffix("_dyn"),
        input_shapes=(rows, *residual),
        float_residual=workload.residual,
        activation=workload.activation if workload.activation.clamps else Activation(),
    )


def bytes_per_s(total: int, target: Target, workers: int) -> float:
    """The rate at which the level that holds ``total`` bytes is read; a deeper level is never the faster one."""
    rate = target.l2_bytes_per_s * workers
    if total <= target.l2_bytes * workers:
        return rate
    if target.l3_bytes:
        rate = min(rate, target.l3_bytes_per_s * workers)
        if total <= target.l3_bytes:
            return rate
    return min(rate, target.memory_bytes_per_s)
