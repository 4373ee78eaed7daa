"""The plan of an attention kernel: its sizes, the tile of rows that it computes at a time, and what it costs.

A *row* is one query of one head. Its products with the keys are summed over the depth one after another, and those of
its shares with the values key by key: in no size of tile, block or sequence is anything added in another order. Only
the sum of a row's powers is taken in lanes, of which each key has its own for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwq import integer_attention
from hwq.cost import compute_s
from hwq.graph import Shape
from hwq.schedules.generic import common
from hwq.target import Target
from hwq.workload import Workload

# Rows of a tile, vectors of keys in a tile of scores, and vectors of values in one of sums, at most.
MOST_ROWS, MOST_KEYS, MOST_VALUES = 14, 4, 4
# And of keys where there is one query: what is asked for while they are worked on must wait in a cache.
MOST_KEYS_OF_ONE = 2
# A load or broadcast beside a cycle's multiply, and how many multiplies a sum waits for the one before.
LOAD_CYCLES, CHAIN_CYCLES = 0.3, 4.0
# What a vector of scores takes to become shares, in cycles.
SHARE_CYCLES = 14.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One kernel. ``queries`` of ``heads`` x ``depth`` meet ``keys`` of ``kv_heads`` x ``depth`` and ``width``.

    bias: its shape of four axes, None without; constant: it comes behind the inputs. cut: the last input says how many
    queries and keys there are. lanes: of a vector. rows x vectors: a tile of scores; values: vectors of outputs that
    are summed at once. parts: see ``tasks``. stored: the type of q, k and v.
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
    integer: bool
    stored: str
    out_dtype: str

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
    def summed(self) -> str:
        """The type of sums."""
        return "int32" if self.integer else "float32"

    @property
    def tasks(self) -> int:
        """What threads share: parts of a head of keys' rows, or, of one query, of its heads of keys."""
        return self.batch * self.parts * (1 if self.by_heads else self.kv_heads)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """(first, count) of the outputs of a row that are summed at once."""
        step = self.values * self.lanes
        return [(at, min(step, self.width - at)) for at in range(0, self.width, step)]

    @property
    def packs_once(self) -> bool:
        """Whether a head's keys are packed before its tiles; else there is but one, and each block is when its turn
        comes."""
        return not self.by_heads and self.group * math.ceil(self.queries / self.rows) > 1

    @property
    def shifted(self) -> bool:
        """Whether scores are scaled, and their bias added, before their maximum is known."""
        return self.added or (self.scale <= 0.0 and not self.integer)

    @property
    def added(self) -> bool:
        """Whether there is a bias that differs from key to key; else it changes nothing."""
        return integer_attention.counts(self.bias)


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
    problem = Problem(
        count=group if queries == 1 else queries,
        keys=keys,
        depth=depth,
        width=width,
        causal=bool(workload.attr("causal")) and queries > 1,
        lanes=lanes,
    )
    most_keys = MOST_KEYS_OF_ONE if queries == 1 else MOST_KEYS
    rows, vectors, values = best_tile(problem, registers(target), most_keys)
    parallel = common.worth_threads(workload.parallel, compute_s(workload, target), target)
    tiles = group * math.ceil(queries / rows)
    jobs = batch if queries == 1 else batch * kv_heads
    counts = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0] if queries == 1 else list(range(1, tiles + 1))
    parts = next((n for n in counts if even(jobs * n, workload.parallel)), counts[-1]) if parallel else 1
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
        integer=common.is_integer(workload),
        stored=common.element_type(workload, target),
        out_dtype="float32" if workload.out_dtype == "float32" else target.activation_storage,
        fused=target.architecture != "x86_64" or "fma" in target.cpu_flags,
    )


def even(tasks: int, threads: int) -> bool:
    """Whether no thread has a quarter more to do than its share."""
    return math.ceil(tasks / threads) * threads <= 1.25 * tasks


def registers(target: Target) -> int:
    """Vector registers of the target: 32 with AVX-512 and on ARM."""
    return 32 if target.vector_bits == 512 or target.architecture != "x86_64" else 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What tiles are chosen for: ``count`` rows (queries, or one query's heads) of one head of keys, by vectors of
    ``lanes``. causal: the last row sees all keys, each one before it one less.
    """

    count: int
    keys: int
    depth: int
    width: int
    causal: bool
    lanes: int


def best_tile(problem: Problem, registers: int, most_keys: int = MOST_KEYS) -> tuple[int, int, int]:
    """(rows, vectors of keys, vectors of values) of the tiles of fewest ``cycles`` that have registers."""
    wide = min(most_keys, math.ceil(problem.keys / problem.lanes))
    deep = min(MOST_VALUES, math.ceil(problem.width / problem.lanes))
    options = [
        (rows, vectors, values)
        for rows in range(1, min(MOST_ROWS, problem.count) + 1)
        for vectors in range(1, wide + 1)
        for values in range(1, deep + 1)
        if (rows + 1) * max(vectors, values) + 1 <= registers
    ]
    return min(options, key=lambda tile: cycles(problem, *tile))


def cycles(problem: Problem, rows: int, vectors: int, values: int) -> float:
    """Cycles of all rows in tiles of ``rows`` by ``vectors`` and ``values``: products, and the shares' making."""
    tiles, block = math.ceil(problem.count / rows), vectors * problem.lanes
    ends = [problem.keys] * tiles
    if problem.causal:
        ends = [max(1, problem.keys - max(0, problem.count - (tile + 1) * rows)) for tile in range(tiles)]
    scores = sum(math.ceil(end / block) for end in ends) * problem.depth * step_cycles(rows, vectors)
    whole, rest = divmod(math.ceil(problem.width / problem.lanes), values)
    sums = sum(ends) * (whole * step_cycles(rows, values) + (step_cycles(rows, rest) if rest else 0.0))
    shares = SHARE_CYCLES * rows * sum(math.ceil(end / problem.lanes) for end in ends)
    return scores + sums + shares


def step_cycles(rows: int, vectors: int) -> float:
    """Cycles of one multiply of each of a tile's sums, with its loads and broadcasts."""
    return max(rows * vectors, CHAIN_CYCLES) + LOAD_CYCLES * (rows + vectors)
