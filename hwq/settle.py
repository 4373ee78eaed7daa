"""Settle: once it is known which scheme each layer is in, weights in groups are rounded in the network's order.

Until then they are rounded as if all layers before them were float (``hwq.correct``); choices are made by that. These
are the weights of dense layers that take float values (``w4a8_g64_dyn``, ``w4a16_g128``). Stands between ``hwq.choose``
and what is built of a choice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hwq.choose import Choice
from hwq.compose import composed
from hwq.correct import Roundings
from hwq.errors import HwqError
from hwq.evaluate import Evaluation
from hwq.execute import Runner
from hwq.files import write_atomic
from hwq.in_sequence import in_sequence, sequence
from hwq.judge import accuracy_of, open_judge
from hwq.lower import lower
from hwq.moments import HELD
from hwq.padding import find_padding
from hwq.progress import Callback, Stages
from hwq.quantize import Weights, quantize_weights
from hwq.reanchor import losses_of, open_runs, samples_for
from hwq.samples import Digest
from hwq.study import Study, pool_of
from hwq.work import Work

log = logging.getLogger(__name__)


def settled(
    study: Study, work: Work, choice: Choice, evaluation: Evaluation | None, stages: Stages
) -> tuple[Study, Choice]:
    """``study`` with the weights of dense layers in groups as they are best rounded in the chosen assignment, and the
    choice with the loss of that; both as they are where no layer is in such a scheme, the loss does not matter, or
    nothing is won.

    What is won is found by running the whole network with both, on samples that roundings were chosen by but not fitted
    to: the losses of the chosen schemes fall by that part. A choice that was held to a drop stays as it is if it would
    drop more.
    """
    schemes = choice.solution.schemes
    if not study.kept or not study.careful or not sequence(study.graph, schemes):
        return study, choice
    with stages("round in sequence") as progress:
        changed, weights = _changed(study, work, schemes, progress)
    if not changed:
        return study, choice
    new = replace(study, roundings={**study.roundings, **changed}, weights={**study.weights, **weights})
    with stages("compare roundings") as progress:
        losses = []
        for one in (study, new):
            losses.append(_loss(one, work, schemes))
            progress(len(losses), 2)
        before, after = losses
        if after >= before:
            return study, choice
        held, accuracy = choice.accuracy, None
        if held is not None and evaluation is not None:
            accuracy = accuracy_of(open_judge(new, work, pool_of(new, work), evaluation), choice.solution)
            if (accuracy.drop or 0.0) > (held.drop or 0.0):
                return study, choice
    part = after / before
    solution = replace(choice.solution, loss=choice.solution.loss * part)
    return _lower(new, schemes, part), replace(choice, solution=solution, accuracy=accuracy)


def _lower(study: Study, schemes: Mapping[str, str], part: float) -> Study:
    """``study`` with ``part`` of what the layers lose in ``schemes``, alone and in pairs."""
    chosen = schemes.items()
    losses = {unit: loss * part if unit in chosen else loss for unit, loss in study.losses.items()}
    pairs = tuple(
        replace(pair, loss=pair.loss * part) if chosen >= set(zip(pair.layers, pair.schemes, strict=True)) else pair
        for pair in study.pairs
    )
    return replace(study, losses=losses, pairs=pairs)


def _changed(study: Study, work: Work, schemes: Mapping[str, str], progress: Callback) -> tuple[Roundings, Weights]:
    """What ``in_sequence`` finds on the kept samples, which the work directory keeps, and the weights of that."""
    chosen = set(schemes.items())
    given = Digest()
    for one in (*study.kept, {tensor: np.asarray(mean) for tensor, mean in study.means.items()}):
        given.add(one)
    path = work.file(
        "sequence",
        ".json",
        schemes,
        study.kernels_here.code,
        given.hex(),
        study.qparams,
        study.smoothing,
        sorted((*unit, text) for unit, text in study.roundings.items() if unit in chosen),
    )
    try:
        changed = {(name, scheme): str(text) for name, scheme, text in json.loads(path.read_bytes())}
        if changed.keys() <= chosen:
            return changed, _weights(study, changed)
        log.debug("%s is damaged: layers are rounded in sequence again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, HwqError) as error:
        log.debug("%s is damaged (%r): layers are rounded in sequence again", path, error)
    pool = pool_of(study, work)

    def network(weights: Weights) -> Runner:
        stale = {name for (name, scheme), one in weights.items() if one is not study.weights[name, scheme]}
        for key in [key for key in pool.steps if key[0] in stale]:
            del pool.steps[key]
        return composed(pool, lower(study.graph, schemes, study.qparams, weights, study.here, study.threads))

    changed = in_sequence(
        study.graph,
        schemes,
        study.weights,
        study.roundings,
        study.runner,
        network,
        study.kept,
        study.means,
        find_padding(study.graph),
        progress,
    )
    write_atomic(path, json.dumps([[*unit, text] for unit, text in changed.items()]).encode())
    return changed, _weights(study, changed)


def _weights(study: Study, roundings: Roundings) -> Weights:
    """The weights of these units, rounded so."""
    candidates = {layer.name: () for layer in study.graph.layers} | {name: (scheme,) for name, scheme in roundings}
    return quantize_weights(study.graph, candidates, study.qparams, study.means, roundings=roundings)


def _loss(study: Study, work: Work, schemes: Mapping[str, str]) -> float:
    """What the assignment loses on the kept samples that no rounding is fitted to."""
    found = losses_of(open_runs(study, work, pool_of(study, work), samples_for(study)), schemes)
    return float(found[HELD - 1 :: HELD].mean())
