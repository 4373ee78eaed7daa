"""Observe: what the calibration samples say of a network: ranges, channel means, and how weights are best rounded.

The first part of ``hwq.study``: it calls calibrate and correct and keeps what they found in the work directory.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwq import moments
from hwq import samples as samples_of
from hwq.calibrate import choose, collect, load_means, save_means
from hwq.correct import MOST_MACS, Roundings, correct
from hwq.errors import HwqError
from hwq.execute import Runner
from hwq.files import write_atomic
from hwq.graph import ANCHORS, Graph, Layer, data_tensors
from hwq.masks import limits, weighed_by
from hwq.numerics import QParams
from hwq.padding import find_padding
from hwq.progress import Callback, Stages
from hwq.quantize import Means
from hwq.samples import Batch, Inputs
from hwq.scheme import SCHEMES
from hwq.smooth import best, find_spots, macs
from hwq.ties import tied_tensors
from hwq.work import Work, load_qparams, save_qparams

log = logging.getLogger(__name__)

# The first calibration samples are kept, to hold what is built against float and to measure sensitivity.
KEPT_SAMPLES = 64
# Rows that smoothing is fitted to, and as many to judge it by; multiply-adds that pay for a network's places, the
# cheapest first: half a minute on one core.
SMOOTH_ROWS = 256
SMOOTH_MACS = 1e12


def calibrated(
    split: Graph,
    candidates: Mapping[str, tuple[str, ...]],
    runner: Runner,
    work: Work,
    calibration: Any,
    observer: str,
    integers: bool,
    inputs: Inputs,
    stages: Stages,
) -> tuple[dict[str, QParams], Means, tuple[Batch, ...], int, str]:
    """(parameters of every float tensor, channel means, the first batches, how many there were, their digest)."""
    if calibration is None:
        needing = sorted({scheme for names in candidates.values() for scheme in names if SCHEMES[scheme].needs_samples})
        if needing:
            without = ", ".join(repr(name) for name, scheme in SCHEMES.items() if not scheme.needs_samples)
            message = f"calibration is missing, which {', '.join(needing)} needs; accepted: samples, or schemes of"
            raise HwqError("samples-empty", f"{message} {without}, such as schemes=['f32'] for none")
        return {}, {}, (), 0, ""
    # What can be read twice is read first, so that a finished result is found; a generator is streamed once.
    repeatable = samples_of.repeatable(calibration)
    room = max(1, KEPT_SAMPLES // (samples_of.batch_size(inputs) or 1))
    first: tuple[Batch, ...] = ()
    digest, total = "", None
    if repeatable or not integers:
        first, digest, total = _read(samples_of.stream(calibration, inputs, rows=limits(split)), room)
    if not integers:
        return {}, {}, first, total or 0, digest
    tensors = [name for name, dtype in split.dtypes.items() if dtype == "float32"]
    data = data_tensors(split)
    needed = frozenset(
        tensor
        for layer in split.layers
        if any(SCHEMES[scheme].domain == "int8" for scheme in candidates.get(layer.name, ()))
        for tensor in layer.int8_tensors
        if layer.op in ANCHORS or tensor in data  # a mask may well be the same on all samples
    )
    finished = work.file("ranges", ".json", sorted(tensors), sorted(needed), digest, observer)
    finished_means = work.file("means", ".json", sorted(tensors), digest)
    known = load_qparams(finished, tensors) if repeatable else None
    known_means = load_means(finished_means) if known is not None else None
    if known is not None and known_means is not None:
        return known, known_means, first, total or 0, digest
    kept: list[Batch] = []
    streamed = samples_of.Digest()
    count = 0

    def watched() -> Iterable[Batch]:
        nonlocal count
        for batch in samples_of.stream(calibration, inputs, rows=limits(split)):
            streamed.add(batch)
            count += 1
            if len(kept) < room:
                kept.append(batch)
            yield batch

    checkpoint = work.file("statistics", ".npz", sorted(tensors), digest) if repeatable else None
    with stages("calibrate") as progress:
        seen = collect(runner, tensors, watched(), total, checkpoint, progress, find_padding(split), weighed_by(split))
    qparams, means = choose(seen.histograms, tied_tensors(split), observer, needed), seen.means()
    if repeatable:
        save_means(finished_means, means)
        save_qparams(finished, qparams)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return qparams, means, tuple(kept), count, streamed.hex()


def smoothing_of(
    graph: Graph,
    candidates: Mapping[str, tuple[str, ...]],
    runner: Runner,
    work: Work,
    calibration: Any,
    observer: str,
    inputs: Inputs,
    careful: bool,
    stages: Stages,
) -> dict[str, tuple[int, ...]]:
    """How the channels of ``graph`` are best smoothed (``hwq.smooth``), by samples that can be read again; by a
    generator's they are not. Nothing is where no loss is looked at, which ``careful`` says."""
    again = samples_of.repeatable(calibration)
    if not again or not careful:
        return {}
    schemes = {
        spot: sorted({scheme for layer in spot.readers for scheme in candidates[layer.name] if SCHEMES[scheme].integer})
        for spot in find_spots(graph)
    }
    spots, left = [], SMOOTH_MACS
    for spot, names in sorted(schemes.items(), key=lambda item: macs(item[0], len(item[1]), SMOOTH_ROWS)):
        left -= macs(spot, len(names), SMOOTH_ROWS)
        if names and left >= 0:
            spots.append(spot)
    if not spots:
        return {}
    batches = list(itertools.islice(samples_of.stream(calibration, inputs, rows=limits(graph)), KEPT_SAMPLES))
    seen = samples_of.Digest()
    for batch in batches:
        seen.add(batch)
    path = work.file(
        "smoothing", ".json", seen.hex(), observer, sorted((spot.writer, *schemes[spot]) for spot in spots)
    )
    known = _load_smoothing(path)
    if known is not None:
        return known
    found = {}
    with stages("smooth") as progress:
        tensors, padding = [spot.tensor for spot in spots], find_padding(graph)
        rows = moments.rows_of(runner, tensors, batches, SMOOTH_ROWS, progress, padding)
        for spot in spots:
            exponents = best(spot, *rows[spot.tensor], schemes[spot], observer)
            if exponents is not None:
                found[spot.writer] = exponents
    found = {layer.name: found[layer.name] for layer in graph.layers if layer.name in found}
    write_atomic(path, json.dumps(found).encode())
    return found


def _load_smoothing(path: Path) -> dict[str, tuple[int, ...]] | None:
    """What an earlier call found; None if there is nothing, or it is damaged."""
    try:
        rows = json.loads(path.read_bytes())
        return {str(name): tuple(int(value) for value in values) for name, values in rows.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.debug("%s is damaged (%r): channels are smoothed again", path, error)
        return None


def rounded(
    graph: Graph,
    candidates: Mapping[str, tuple[str, ...]],
    runner: Runner,
    qparams: Mapping[str, QParams],
    work: Work,
    calibration: Any,
    kept: Sequence[Batch],
    count: int,
    digest: str,
    inputs: Inputs,
    careful: bool,
    progress: Callback,
) -> Roundings:
    """How weights are best rounded, by all samples that can be read again; those of a generator only as far as kept.

    careful: loss decides, so that it is worth its time; else all are rounded plainly.
    """
    if calibration is None:
        return {}
    again = samples_of.repeatable(calibration)
    total, padding = count if again else len(kept), find_padding(graph)

    def gather(layers: Sequence[Layer], progress: Callback) -> Mapping[str, moments.Moments]:
        batches = samples_of.stream(calibration, inputs, rows=limits(graph)) if again else kept
        return moments.collect(runner, layers, qparams, batches, total, progress, padding)

    def journal(layer: Layer, schemes: Sequence[str]) -> Path:
        q = qparams.get(layer.inputs[0])
        ranges = () if q is None else (q.scale, q.zero_point)
        return work.file("rounding", ".json", layer.name, schemes, digest, total, *ranges)

    return correct(graph, candidates, qparams, gather, journal, progress, MOST_MACS if careful else 0.0)


def _read(batches: Iterable[Batch], room: int) -> tuple[tuple[Batch, ...], str, int]:
    """The first ``room`` batches, the digest of all, and how many there are."""
    kept: list[Batch] = []
    hashed, count = samples_of.Digest(), 0
    for batch in batches:
        hashed.add(batch)
        count += 1
        if count <= room:
            kept.append(batch)
    return tuple(kept), hashed.hex(), count
