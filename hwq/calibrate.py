"""Calibrate: the range of every activation over the samples, in bounded memory, as the parameters of its int8 form.

The float network runs sample by sample with this project's own float kernels; each tensor feeds a streaming histogram.
Tensors that must share a scale (``hwq.ties``) are judged on their merged histogram. Long runs leave a checkpoint.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwq import numerics, observers
from hwq.errors import HwqError
from hwq.execute import Progress, Runner, quiet, run, to_device
from hwq.files import write_atomic
from hwq.graph import Activation, Graph, Layer
from hwq.numerics import QParams
from hwq.samples import Batch
from hwq.scheme import QType

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


def collect(
    runner: Runner,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    total: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = quiet,
) -> dict[str, observers.Histogram]:
    """Stream ``batches`` through the float ``runner`` and return the histogram of each of ``tensors``.

    The checkpoint of an interrupted call on the same samples is taken up where it stopped; it is removed at the end.
    """
    histograms = {tensor: observers.Histogram() for tensor in tensors}
    skip = 0
    if checkpoint is not None and checkpoint.exists():
        histograms, skip = _load_checkpoint(checkpoint, tensors)
    saved = time.monotonic()
    for done, batch in enumerate(batches):
        if done < skip:
            continue
        env = run(runner, to_device(batch))
        for tensor in tensors:
            histograms[tensor].update(env[tensor].numpy())
        progress(done + 1, total or done + 1)
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_S:
            _save_checkpoint(checkpoint, histograms, done + 1)
            saved = time.monotonic()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return histograms


def _save_checkpoint(path: Path, histograms: Mapping[str, observers.Histogram], done: int) -> None:
    blob = io.BytesIO()
    arrays = {f"{i}/{key}": value for i, h in enumerate(histograms.values()) for key, value in h.to_arrays().items()}
    packed: dict[str, Any] = {"done": np.array(done), "names": np.array(list(histograms)), **arrays}
    np.savez(blob, **packed)
    write_atomic(path, blob.getvalue())


def _load_checkpoint(path: Path, tensors: Sequence[str]) -> tuple[dict[str, observers.Histogram], int]:
    with np.load(path) as pack:
        names = [str(name) for name in pack["names"]]
        assert names == list(tensors), "a checkpoint is keyed by its graph and samples"
        found = {}
        for i, name in enumerate(names):
            keys = [key for key in pack.files if key.startswith(f"{i}/")]
            found[name] = observers.Histogram.from_arrays({key.split("/")[1]: pack[key] for key in keys})
        return found, int(pack["done"])


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
