"""The plan of an attention kernel: its sizes, the tile of rows that it computes at a time, and what it costs.

A *row* is one query of one head. Its products with the keys are summed over the depth one after another, and those of
its shares with the values key by key: in no size of tile, block or sequence is anything added in another order. Only
the sum of a row's powers is taken in lanes, of which each key has its own for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwq.cost import op_macs
from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Workload

# Rows of a tile, vectors of keys in a tile of scores, and vectors of values in one of sums, at most.
MOST_ROWS, MOST_KEYS, MOST_VALUES = 14, 4, 4
# A load or broadcast beside a cycle's multiply, and how many multiplies a sum waits for the one before.
LOAD_CYCLES, CHAIN_CYCLES = 0.3, 4.0
# What a vector of scores takes to become shares, in cycles.
SHARE_CYCLES = 14.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel. ``queries`` of ``heads`` x ``depth`` meet ``keys`` of ``kv_heads`` x ``depth`` and ``width``.

    bias: its shape of four axes, None without; constant: it comes behind the inputs. cut: the last input says how many
    queries and keys there are. lanes: of a vector. rows x vectors: a tile of scores; values: vectors of outputs that
    are summed at once. parts: how many tasks share the rows of one head of keys.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    depth: int
    width: int
    scale: float
    causal: bool
    cut: bool
    bias: Shape | None
    constant: bool
    lanes: int
    rows: int
    vectors: int
    values: int
    parts: int
    parallel: bool
    fused: bool

    @property
    def group(self) -> int:
        """Heads of queries that read the same head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def by_heads(self) -> bool:
        """Whether a tile's rows are one query's heads, and not one head's queries."""
        return self.queries == 1

    @property
    def block(self) -> int:
        """Keys in a tile of scores."""
        return self.vectors * self.lanes

    @property
    def blocks(self) -> int:
        return math.ceil(self.keys / self.block)

    @property
    def pitch(self) -> int:
        """Scores from one row of a tile to the next: an odd number of cache lines, so that rows do not crowd."""
        lines = math.ceil(self.blocks * self.block / 16)
        return 16 * (lines + (lines % 2 == 0))

    @property
    def packs_once(self) -> bool:
        """Whether a head's keys are packed before its tiles; else there is but one, and each block is when its turn
        comes."""
        return not self.by_heads and self.group * math.ceil(self.queries / self.rows) > 1

    @property
    def shifted(self) -> bool:
        """Whether scores are scaled, and their bias added, before their maximum is known."""
        return self.added or self.scale <= 0.0

    @property
    def added(self) -> bool:
        """Whether there is a bias that differs from key to key; else it changes nothing."""
        return self.bias is not None and (self.bias[3] > 1 or self.keys == 1)


def make_plan(workload: Workload, target: Target) -> Plan:
    """The plan of an attention workload: the tile of fewest cycles that has registers, and the tasks that pay."""
    batch, queries, _ = workload.input_shapes[0]
    _, keys, deep = workload.input_shapes[1]
    heads, kv_heads = workload.attr("heads"), workload.attr("kv_heads")
    depth, width = deep // kv_heads, workload.input_shapes[2][2] // kv_heads
    cut = bool(dict(workload.attrs).get("cut", False))
    shapes = workload.input_shapes[3 : len(workload.input_shapes) - cut]
    constant = dict(workload.attrs).get("bias", ())
    lanes = target.lanes()
    group = heads // kv_heads
    count = group if queries == 1 else queries
    rows, vectors, values = best_tile(count, keys, depth, width, lanes, registers(target))
    work_s = seconds(workload, target)
    jobs = batch * kv_heads
    parallel = common.worth_threads(workload.parallel, work_s, target)
    parts = 1
    if parallel and queries > 1:
        tiles = group * math.ceil(queries / rows)
        parts = next((n for n in range(1, tiles + 1) if _even(jobs * n, workload.parallel)), 1)
    return Plan(
        batch=batch,
        queries=queries,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        depth=depth,
        width=width,
        scale=float(workload.attr("scale")),
        causal=bool(workload.attr("causal")),
        cut=cut,
        bias=next(iter((*shapes, *([tuple(constant)] if constant else ()))), None),
        constant=bool(constant),
        lanes=lanes,
        rows=rows,
        vectors=vectors,
        values=values,
        parts=parts,
        parallel=parallel and jobs * parts > 1,
        fused=target.architecture != "x86_64" or "fma" in target.cpu_flags,
    )


def _even(tasks: int, threads: int) -> bool:
    """Whether no thread has a quarter more to do than its share."""
    return math.ceil(tasks / threads) * threads <= 1.25 * tasks


def registers(target: Target) -> int:
    """Vector registers of the target: 32 with AVX-512 and on ARM."""
    return 32 if target.vector_bits == 512 or target.architecture != "x86_64" else 16


def seconds(workload: Workload, target: Target) -> float:
    """What one core takes for the products, at two vectors' worth in three cycles."""
    return op_macs(workload) / (target.lanes() * target.clock_hz)


def best_tile(count: int, keys: int, depth: int, width: int, lanes: int, registers: int) -> tuple[int, int, int]:
    """(rows, vectors of keys, vectors of values) of the tiles of fewest ``cycles`` for ``count`` rows."""
    wide, deep = min(MOST_KEYS, math.ceil(keys / lanes)), min(MOST_VALUES, math.ceil(width / lanes))
    options = [
        (rows, vectors, values)
        for rows in range(1, min(MOST_ROWS, count) + 1)
        for vectors in range(1, wide + 1)
        for values in range(1, deep + 1)
        if (rows + 1) * max(vectors, values) + 1 <= registers
    ]
    return min(options, key=lambda tile: cycles(count, keys, depth, width, lanes, *tile))


def cycles(count: int, keys: int, depth: int, width: int, lanes: int, rows: int, vectors: int, values: int) -> float:
    """Cycles of ``count`` rows in tiles of ``rows`` by ``vectors`` and ``values``: products, and the shares' making."""
    tiles = math.ceil(count / rows)
    scores = math.ceil(keys / (vectors * lanes)) * depth * step_cycles(rows, vectors)
    whole, rest = divmod(math.ceil(width / lanes), values)
    sums = keys * (whole * step_cycles(rows, values) + (step_cycles(rows, rest) if rest else 0.0))
    shares = SHARE_CYCLES * rows * math.ceil(keys / lanes)
    return tiles * (scores + sums + shares)


def step_cycles(rows: int, vectors: int) -> float:
    """Cycles of one multiply of each of a tile's sums, with its loads and broadcasts."""
    return max(rows * vectors, CHAIN_CYCLES) + LOAD_CYCLES * (rows + vectors)
