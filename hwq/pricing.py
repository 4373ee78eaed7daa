"""Pricing: what every layer of a network costs in every scheme on one machine, and every conversion between them.

A kernel costs what its record says; without one what is learned from other records (``learned_price``); for operators
that nothing was learned of, the roofline. Where measuring is allowed, kernels without a record are measured first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwq.cost import float_output_s, moved_bytes, price
from hwq.decided import Decisions, compile_decided, decisions_for, without_decided
from hwq.execute import KernelSet, packed_constants, resident_bytes
from hwq.graph import Graph, Layer, Shape
from hwq.learned_price import Learned, refresh, usable_for
from hwq.lengths import cut_steps, cut_workload
from hwq.lower import FLOAT, Program, Step, convert_workload, layer_workload, row_workloads, writes_float
from hwq.measure import homes_by, measure_kernels
from hwq.progress import Callback, Stages
from hwq.scheme import SCHEMES, Cost
from hwq.store import Record
from hwq.tables import repeated_bytes
from hwq.target import Target
from hwq.workload import Workload

log = logging.getLogger(__name__)
FREE = Cost(latency_s=0.0, weight_bytes=0, source="measured", interval_s=(0.0, 0.0))
Unit = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """costs: (layer, scheme) -> cost. conversions: tensor -> seconds to (quantize, dequantize) it.

    direct_s: tensor -> seconds that its integer producer takes longer to write it as float itself, where it can.
    moved_s: tensor that a transpose writes -> seconds of the one kernel that transposes and quantizes. rows_s: tensor
    that a layer may read by rows -> seconds to find their scales and make bytes of them.
    """

    costs: Mapping[Unit, Cost]
    conversions: Mapping[str, tuple[float, float]]
    direct_s: Mapping[str, float]
    moved_s: Mapping[str, float]
    rows_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """kernels: those that were priced, as ``decisions`` have it. footprints: as in ``Pricer``."""

    kernels: KernelSet
    decisions: Decisions
    footprints: Mapping[str, int]
    prices: Prices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pricer:
    """What prices are made from. footprints: for each scheme the bytes of all weights of the network in it."""

    target: Target
    threads: int
    kernels: KernelSet
    footprints: Mapping[str, int]
    learned: Learned | None
    records: Mapping[Workload, Record]

    def cost(self, workload: Workload, like: Workload | None = None) -> Cost:
        """The cost of ``workload``. like: one whose kernel is of the same schedule, where its own was not made."""
        made = self.kernels.kernels.get(workload) or self.kernels.kernels.get(like or workload)
        learned = None
        if self.learned is not None and made is not None and workload not in self.records:
            home = homes_by(self.footprints, self.target)(workload)
            learned = self.learned.price(workload, made.schedule, home, self.target)
        return price(workload, self.target, self.threads, self.records.get(workload), learned)


def price_network(
    graph: Graph, candidates: Mapping[str, Sequence[str]], pricer: Pricer, packed: Mapping[Workload, int]
) -> Prices:
    """Prices of ``graph``. packed: bytes of a kernel's constants as the artifact will hold them, where it was made."""
    threads = pricer.threads
    costs: dict[Unit, Cost] = {}
    direct: dict[str, float] = {}
    repeated = repeated_bytes(graph)
    for layer in graph.layers:
        for scheme in candidates[layer.name]:
            out = FLOAT if SCHEMES[scheme].domain == "f32" or layer.float_residual else "int8"
            workload = layer_workload(layer, scheme, out, threads)
            if workload is None:
                costs[layer.name, scheme] = FREE
                continue
            workload = cut_workload(workload, layer.output_shape)
            cost = pricer.cost(workload)
            if workload in packed:
                cost = replace(cost, weight_bytes=packed[workload] - repeated.get(layer.name, 0))
            costs[layer.name, scheme] = cost
            if out == "int8" and writes_float(layer) and layer.output not in direct:
                direct[layer.output] = _direct_s(layer, workload, pricer)

    def seconds(workload: Workload, shape: Shape) -> float:
        """Of a kernel that makes another form of a tensor of ``shape``."""
        return pricer.cost(cut_workload(workload, shape)).latency_s

    conversions = {
        tensor: (
            seconds(convert_workload("quantize", shape, threads), shape),
            seconds(convert_workload("dequantize", shape, threads), shape),
        )
        for tensor, shape in graph.shapes.items()
    }
    moved_s = {
        layer.output: seconds(convert_workload("quantize", layer.output_shape, threads, layer), layer.output_shape)
        for layer in transposes(graph, candidates)
    }
    by_rows = {
        layer.inputs[0]: layer.input_shapes[0]
        for layer in graph.layers
        if layer.op == "dense" and any(SCHEMES[scheme].dynamic for scheme in candidates[layer.name])
    }
    rows_s = {
        tensor: math.fsum(seconds(workload, shape) for workload in row_workloads(shape, threads))
        for tensor, shape in by_rows.items()
    }
    return Prices(costs=costs, conversions=conversions, direct_s=direct, moved_s=moved_s, rows_s=rows_s)


def _direct_s(layer: Layer, integer: Workload, pricer: Pricer) -> float:
    """What the kernel of ``integer`` takes longer where it writes float: as learned for both, else the bytes more."""
    alike = replace(pricer, records={})
    both = alike.cost(integer), alike.cost(replace(integer, out_dtype=FLOAT), integer)
    if all(cost.source == "learned" for cost in both):
        return both[1].latency_s - both[0].latency_s
    return float_output_s(integer, pricer.target, pricer.threads)


def transposes(graph: Graph, candidates: Mapping[str, Sequence[str]]) -> tuple[Layer, ...]:
    """The transposes that the quantize behind them can do on its way: an integer layer may read what they write."""
    integer = {
        tensor
        for layer in graph.layers
        for tensor in layer.inputs
        if any(SCHEMES[scheme].domain == "int8" for scheme in candidates[layer.name])
    }
    return tuple(layer for layer in graph.layers if layer.op == "transpose" and layer.output in integer)


def moved_programs(
    graph: Graph, candidates: Mapping[str, Sequence[str]], target: Target, threads: int
) -> list[Program]:
    """For each of ``transposes`` a program of the one kernel that transposes and quantizes, to compile and measure."""
    found = []
    for layer in transposes(graph, candidates):
        output = f"{layer.output}@int8"
        step = Step(
            name=f"{layer.output}:quantize",
            workload=convert_workload("quantize", layer.output_shape, threads, layer),
            inputs=layer.inputs,
            output=output,
            constants=(np.array([target.activation_offset], np.int32), np.array([1.0], np.float32)),
        )
        values = {
            layer.inputs[0]: (layer.input_shapes[0], FLOAT),
            output: (layer.output_shape, target.activation_storage),
        }
        steps, known = cut_steps([step], values)
        found.append(Program(inputs=steps[0].inputs, outputs=(output,), values=known, steps=steps))
    return found


def constant_bytes(programs: Iterable[Program], kernels: KernelSet) -> tuple[dict[Workload, int], dict[Workload, int]]:
    """Bytes of each kernel's constants, padding included: as the artifact will hold them, and as the kernel reads."""
    stored, resident = {}, {}
    for step in (step for program in programs for step in program.steps if step.workload is not None):
        assert step.workload is not None
        packed = packed_constants(step, kernels)
        stored[step.workload] = sum(array.nbytes for array in packed)
        resident[step.workload] = resident_bytes(step, kernels, packed)
    return stored, resident


def footprints_of(programs: Iterable[Program], resident: Mapping[Workload, int]) -> dict[str, int]:
    """For each scheme the bytes of all layers' constants in it, as kernels read them."""
    found: dict[str, int] = {}
    for program in programs:
        for step in program.steps:
            if step.workload is not None:
                read = resident[step.workload]
                if step.workload.op == "gather":  # some rows of a table
                    read = min(read, moved_bytes(step.workload))
                found[step.workload.scheme] = found.get(step.workload.scheme, 0) + read
    return found


def measured(pricer: Pricer, programs: Sequence[Program], store: Path, progress: Callback) -> Pricer:
    """``pricer`` with a record of every kernel of ``programs``, measured where the store has none."""
    records = measure_kernels(
        programs, pricer.kernels, pricer.target, store, pricer.threads, pricer.footprints, progress
    )
    return replace(pricer, records={**pricer.records, **records})


def price_programs(
    graph: Graph,
    candidates: Mapping[str, Sequence[str]],
    programs: Sequence[Program],
    kernels: KernelSet,
    target: Target,
    threads: int,
    cache: Path,
    store: Path,
    measure: bool,
    stages: Stages,
) -> Priced:
    """Prices of ``graph`` with its kernels as the store has decided on them: ``programs`` are all layers in all schemes
    that ``candidates`` names. kernels: those of ``programs``, as decided or not.
    """
    decisions = decisions_for(target, store)
    packed, resident = constant_bytes(programs, kernels)
    if decisions:
        with stages("compile tuned") as progress:
            known, home_of = without_decided(kernels, decisions), homes_by(footprints_of(programs, resident), target)
            kernels = compile_decided(programs, target, cache, decisions, home_of, progress, known)
        packed, resident = constant_bytes(programs, kernels)
    pricer = Pricer(
        target=target,
        threads=threads,
        kernels=kernels,
        footprints=footprints_of(programs, resident),
        learned=usable_for(target, cache),
        records={},
    )
    if measure:
        with stages("measure") as progress:
            pricer = measured(pricer, programs, store, progress)
        with stages("learn"):
            refresh(target, store, cache)
    prices = price_network(graph, candidates, pricer, packed)
    return Priced(kernels=kernels, decisions=decisions, footprints=pricer.footprints, prices=prices)
