"""Sensitivity: how much each layer, alone in an integer scheme, moves the network's outputs.

Each candidate kernel runs on the real activations of each sample between float neighbours, and the float network goes
on from there to ``hwq.loss``. These isolated scores are what ``hwq.reanchor`` corrects by whole assignments.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hwq import loss
from hwq.cost import op_macs
from hwq.execute import BoundStep, KernelSet, Runner, bind, quiet, run, seen, to_device
from hwq.files import write_atomic
from hwq.graph import Graph, Layer
from hwq.loss import Sums
from hwq.lower import Program, lower
from hwq.numerics import QParams
from hwq.progress import Callback
from hwq.quantize import Weights
from hwq.samples import Batch, count_of
from hwq.target import Target

log = logging.getLogger(__name__)
Unit = tuple[str, str]

# Sensitivity takes of the samples that are kept what this much work allows (20 seconds on one core), at least four:
# errors of many outputs settle in few samples.
SENSITIVITY_MACS = 0.9e12
SENSITIVITY_SAMPLES = (4, 16)
# For bf16 half as many are enough: its losses are about a tenth of int8's (0.01 to 0.3 of them in the layers of two
# networks), and even those of two samples were 0.5 to 1.7 times those of sixteen.
BF16_SHARE = 2


def unit_program(
    graph: Graph,
    layer: Layer,
    scheme: str,
    qparams: Mapping[str, QParams],
    weights: Weights,
    target: Target,
    parallel: int,
) -> Program:
    """``layer`` alone in ``scheme`` between float tensors: conversions, its kernel, float out."""
    alone = dataclasses.replace(
        graph, inputs=tuple(dict.fromkeys(layer.inputs)), outputs=(layer.output,), layers=(layer,)
    )
    return lower(alone, {layer.name: scheme}, qparams, weights, target, parallel, direct=False)


def downstream(runner: Runner, tensor: str) -> tuple[BoundStep, ...]:
    """The steps of ``runner`` that depend on ``tensor``, in order; the one that writes it is not among them."""
    touched = {tensor}
    found = []
    for bound in runner.steps:
        if touched & set(bound.step.inputs):
            touched.add(bound.step.output)
            found.append(bound)
    return tuple(found)


def measure(
    reference: Runner,
    units: Mapping[Unit, Program],
    kernels: KernelSet,
    batches: Sequence[Batch],
    journal: Path | None = None,
    progress: Callback = quiet,
    words: int = 0,
) -> dict[Unit, Sums]:
    """What each (layer, scheme) loses over ``batches``; ``reference`` is the bound float network. words: as in
    ``loss.kind_of``.

    A journal of an interrupted call on the same network, ranges and samples is taken up after its last whole sample.
    """
    sums, skip = _taken_up(journal, units)
    left = batches[skip:]
    runners = {unit: bind(program, kernels) for unit, program in units.items()} if left else {}
    scratch = Runner(program=reference.program, steps=reference.steps)
    tails = {unit: downstream(reference, runners[unit].program.outputs[0]) for unit in runners}
    outputs = reference.program.outputs
    kind = None
    for done, batch in enumerate(left, skip):
        env = run(reference, to_device(batch))
        clean = [seen(reference, env, name) for name in outputs]
        kind = kind or loss.kind_of(clean, count_of(batch), words)
        for count, unit in enumerate(units):
            mine = run(runners[unit], {name: env[name] for name in runners[unit].program.inputs})
            target = runners[unit].program.outputs[0]
            result = run(scratch, {**env, target: mine[target]}, steps=tails[unit])
            sums[unit] += loss.compare([seen(scratch, result, name) for name in outputs], clean, kind)
            progress(done * len(units) + count + 1, len(batches) * len(units))
        if journal is not None:
            rows = [[*unit, dataclasses.asdict(found)] for unit, found in sums.items()]
            write_atomic(journal, json.dumps({"done": done + 1, "sums": rows}).encode())
    return sums


def _taken_up(journal: Path | None, units: Iterable[Unit]) -> tuple[dict[Unit, Sums], int]:
    """(sums, samples done) of the journal; a start from nothing if there is none, or it is damaged."""
    nothing = dict.fromkeys(units, Sums())
    if journal is None or not journal.exists():
        return nothing, 0
    try:
        state = json.loads(journal.read_bytes())
        sums = {
            (layer, scheme): Sums(**{name: value + 0 for name, value in fields.items()})
            for layer, scheme, fields in state["sums"]
        }
        done = int(state["done"])
        assert sums.keys() == nothing.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        log.debug("%s is damaged (%r): sensitivity starts again", journal, error)
        return nothing, 0
    return {unit: sums[unit] for unit in nothing}, done


def samples_for(program: Program, units: int, floats: bool) -> int:
    """How many samples the units are measured on: each runs half of the float ``program`` on average. floats: bf16."""
    macs = sum(op_macs(step.workload) for step in program.steps if step.workload is not None)
    least, most = SENSITIVITY_SAMPLES
    return int(min(max(SENSITIVITY_MACS / (units * macs / 2), least), most)) // (BF16_SHARE if floats else 1)
