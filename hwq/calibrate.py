"""Calibrate: what range every activation takes on the user's samples, and from it the parameters of its int8 form.

The float network runs sample by sample with this project's own float kernels; each tensor feeds a streaming histogram,
and each one that weights read the sums of its channels (``hwq.quantize`` corrects biases with their means).
Tensors that must share a scale (``hwq.ties``) are judged on their merged histogram. Long runs leave a checkpoint.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import time
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import numerics, observers
from hwq.errors import HwqError
from hwq.execute import Runner, quiet, run, to_device
from hwq.files import write_atomic
from hwq.graph import ANCHORS, LEAST, Activation, Graph, Layer
from hwq.lengths import EXTRA
from hwq.numerics import QParams
from hwq.padding import NO_PADDING, Padding
from hwq.progress import Callback
from hwq.samples import Batch, batch_size
from hwq.scheme import QType

log = logging.getLogger(__name__)
CHECKPOINT_S = 10.0


def split_activations(graph: Graph) -> Graph:
    """``graph`` with each table activation of an anchor as a layer of its own: the value in front of it is seen.

    conv + hard_swish -> conv writing "conv:pre", unary hard_swish from "conv:pre" to the layer's output.
    """
    shapes, dtypes = dict(graph.shapes), dict(graph.dtypes)
    layers: list[Layer] = []
    for layer in graph.layers:
        if layer.weight is None or layer.activation.clamps:
            layers.append(layer)
            continue
        pre = f"{layer.name}:pre"
        shapes[pre], dtypes[pre] = layer.output_shape, "float32"
        layers.append(dataclasses.replace(layer, output=pre, activation=Activation()))
        layers.append(
            Layer(
                name=f"{layer.name}:activation",
                op="unary",
                inputs=(pre,),
                output=layer.output,
                input_shapes=(layer.output_shape,),
                output_shape=layer.output_shape,
                activation=layer.activation,
            )
        )
    return dataclasses.replace(graph, shapes=shapes, dtypes=dtypes, layers=tuple(layers))


@dataclass(slots=True, kw_only=True)
class Statistics:
    """What calibration has seen. sums: of each channel, float64 (C,); rows: how many values each of them sums."""

    histograms: dict[str, observers.Histogram]
    sums: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def means(self) -> dict[str, tuple[float, ...]]:
        """The mean of each channel, in the five digits that a plan's file keeps, so that it gives the same biases."""
        return {
            tensor: tuple(float(f"{value:.5g}") for value in sums / self.rows[tensor])
            for tensor, sums in self.sums.items()
        }


def collect(
    runner: Runner,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    total: int | None = None,
    checkpoint: Path | None = None,
    progress: Callback = quiet,
    padding: Padding = NO_PADDING,
    scores: Collection[str] = (),
) -> Statistics:
    """Stream ``batches`` through the float ``runner``: histograms of ``tensors``, channel sums of what weights read,
    both without the rows of ``padding``; in ``scores`` (``hwq.masks``) -infinity is LEAST.

    The checkpoint of an interrupted call on the same samples is taken up where it stopped. The caller removes it
    when what is made of the statistics is safe. Raises HwqError "values-not-finite", naming the first tensor of the
    network that holds such values.
    """
    found = Statistics(histograms={tensor: observers.Histogram() for tensor in tensors})
    layers = {one.step.output: one.step.name for one in runner.steps}
    places = {tensor: place for place, tensor in enumerate(layers)}
    ordered = sorted(tensors, key=lambda tensor: places.get(tensor, -1))
    anchors = [one.step for one in runner.steps if one.step.workload is not None and one.step.workload.op in ANCHORS]
    weighed = list(dict.fromkeys(step.inputs[0] for step in anchors))
    skip = 0
    if checkpoint is not None and checkpoint.exists():
        kept = _load_checkpoint(checkpoint, tensors)
        found, skip = kept or (found, 0)
    saved, done = time.monotonic(), -1
    for done, batch in enumerate(batches):
        if done < skip:
            continue
        env = run(runner, to_device(batch))
        for tensor in ordered:
            whose = f"{_counted(batch, done)} gives activation {tensor!r}"
            layer = layers.get(tensor, tensor)
            whose += "" if layer == tensor else f" (layer {layer!r})"
            value = padding.values(runner, env, tensor)
            found.histograms[tensor].update(np.maximum(value, LEAST) if tensor in scores else value, whose)
        for tensor in weighed:
            value = padding.values(runner, env, tensor)
            found.sums[tensor] = found.sums.get(tensor, 0.0) + value.sum(axis=0, dtype=np.float64)
            found.rows[tensor] = found.rows.get(tensor, 0) + len(value)
        progress(done + 1, total or done + 1)
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_S:
            _save_checkpoint(checkpoint, found, done + 1)
            saved = time.monotonic()
    if checkpoint is not None and checkpoint.exists():
        _save_checkpoint(checkpoint, found, done + 1)
    return found


def _counted(batch: Batch, done: int) -> str:
    """Which of the calibration samples, counted from 0, those of ``batch`` are."""
    size = batch_size({name: (array.shape, "") for name, array in batch.items() if name not in EXTRA}) or 1
    return f"calibration sample {done}" if size == 1 else f"calibration batch {done} (of {size} samples)"


def _save_checkpoint(path: Path, found: Statistics, done: int) -> None:
    blob = io.BytesIO()
    packed: dict[str, Any] = {"done": np.array(done), "names": np.array(list(found.histograms))}
    for i, histogram in enumerate(found.histograms.values()):
        packed |= {f"{i}/{key}": value for key, value in histogram.to_arrays().items()}
    packed["weighed"] = np.array(list(found.sums), np.str_)
    packed["rows"] = np.array([found.rows[tensor] for tensor in found.sums], np.int64)
    packed |= {f"sums/{i}": sums for i, sums in enumerate(found.sums.values())}
    np.savez(blob, **packed)
    write_atomic(path, blob.getvalue())


def _load_checkpoint(path: Path, tensors: Sequence[str]) -> tuple[Statistics, int] | None:
    """What an interrupted call had seen, and of how many batches; None if the file is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as pack:
            names = [str(name) for name in pack["names"]]
            if names != list(tensors):
                return None
            histograms = {}
            for i, name in enumerate(names):
                keys = [key for key in pack.files if key.startswith(f"{i}/")]
                histograms[name] = observers.Histogram.from_arrays({key.split("/")[1]: pack[key] for key in keys})
            weighed = [str(name) for name in pack["weighed"]]
            sums = {name: pack[f"sums/{i}"] for i, name in enumerate(weighed)}
            rows = dict(zip(weighed, (int(count) for count in pack["rows"]), strict=True))
            return Statistics(histograms=histograms, sums=sums, rows=rows), int(pack["done"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.debug("%s is damaged (%s): calibration starts anew", path, error)
        return None


def save_means(path: Path, means: Mapping[str, Sequence[float]]) -> None:
    """Keep channel means as JSON. Raises HwqError "save-failed"."""
    write_atomic(path, json.dumps({name: list(values) for name, values in means.items()}).encode())


def load_means(path: Path) -> dict[str, tuple[float, ...]] | None:
    """What ``save_means`` kept; None if there is nothing, or it is damaged."""
    try:
        rows = json.loads(path.read_bytes())
        return {str(name): tuple(float(value) for value in values) for name, values in rows.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.debug("%s is damaged (%s): the means are made again", path, error)
        return None


def choose(
    histograms: Mapping[str, observers.Histogram], ties: Iterable[frozenset[str]], observer: str, needed: frozenset[str]
) -> dict[str, QParams]:
    """int8 parameters for every tensor from its histogram, one set for each group of ``ties``.

    Raises HwqError "constant-activation" for a tensor in ``needed`` that had one value over all samples.
    """
    qtype = QType(bits=8)
    found: dict[str, QParams] = {}
    group_of = {tensor: group for group in ties for tensor in group}
    for tensor in histograms:
        if tensor in found:
            continue
        group = sorted(group_of.get(tensor, frozenset([tensor])) & histograms.keys())
        merged = histograms[group[0]].copy()
        for other in group[1:]:
            merged.merge(histograms[other])
        if merged.low == merged.high and needed & set(group):
            raise HwqError(
                "constant-activation",
                f"activation {tensor!r} has the one value {merged.low:g} on every calibration sample, so it has no "
                "range; accepted: samples on which it varies, or schemes=['f32']",
            )
        low, high = observers.range_of(merged, observer, qtype)
        params = numerics.choose_qparams(low, high, qtype)
        found.update(dict.fromkeys(group, params))
    return found
