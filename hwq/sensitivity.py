"""Sensitivity: how much each layer, alone in an integer scheme, moves the network's outputs.

Each candidate kernel runs on the real activations of each sample between float neighbours, and the float network goes
on from there. The loss is the noise-to-signal ratio of the outputs, sum |y - y0|^2 / sum |y0|^2: it needs no labels,
adds up over independent errors, and -10 log10 of it is the SQNR in dB.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hwq.execute import BoundStep, KernelSet, Runner, bind, quiet, run, to_device
from hwq.files import write_atomic
from hwq.graph import Graph, Layer
from hwq.lower import Program, lower
from hwq.numerics import QParams
from hwq.progress import Callback
from hwq.quantize import Weights
from hwq.samples import Batch
from hwq.target import Target

log = logging.getLogger(__name__)
Unit = tuple[str, str]


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
) -> dict[Unit, float]:
    """The loss of each (layer, scheme) over ``batches``; ``reference`` is the bound float network.

    A journal of an interrupted call on the same network, ranges and samples is taken up after its last whole sample.
    """
    noise, signal, skip = _taken_up(journal, units)
    left = batches[skip:]
    runners = {unit: bind(program, kernels) for unit, program in units.items()} if left else {}
    scratch = Runner(program=reference.program, steps=reference.steps)
    tails = {unit: downstream(reference, runners[unit].program.outputs[0]) for unit in runners}
    outputs = reference.program.outputs
    for done, batch in enumerate(left, skip):
        env = run(reference, to_device(batch))
        clean = [env[name].numpy().astype(np.float64) for name in outputs]
        signal += sum(float(np.square(value).sum()) for value in clean)
        for count, unit in enumerate(units):
            mine = run(runners[unit], {name: env[name] for name in runners[unit].program.inputs})
            target = runners[unit].program.outputs[0]
            result = run(scratch, {**env, target: mine[target]}, steps=tails[unit])
            noise[unit] += sum(
                float(np.square(result[name].numpy() - value).sum()) for name, value in zip(outputs, clean, strict=True)
            )
            progress(done * len(units) + count + 1, len(batches) * len(units))
        if journal is not None:
            state = {"signal": signal, "done": done + 1, "noise": [[*unit, value] for unit, value in noise.items()]}
            write_atomic(journal, json.dumps(state).encode())
    return {unit: value / max(signal, np.finfo(np.float64).tiny) for unit, value in noise.items()}


def _taken_up(journal: Path | None, units: Iterable[Unit]) -> tuple[dict[Unit, float], float, int]:
    """(noise, signal, samples done) of the journal; a start from nothing if there is none, or it is damaged."""
    nothing = dict.fromkeys(units, 0.0)
    if journal is None or not journal.exists():
        return nothing, 0.0, 0
    try:
        state = json.loads(journal.read_bytes())
        noise = {(layer, scheme): float(value) for layer, scheme, value in state["noise"]}
        signal, done = float(state["signal"]), int(state["done"])
        assert noise.keys() == nothing.keys()
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        log.debug("%s is damaged (%r): sensitivity starts again", journal, error)
        return nothing, 0.0, 0
    return {unit: noise[unit] for unit in nothing}, signal, done
