"""Moments: of each layer's inputs, as its weights read them, the mean and the covariance; what corrections weigh by.

A convolution is a matrix product with columns of KH * KW * I inputs, in the order of ``Layer.weight``; a dense layer's
column is its input. Columns are drawn from every sample, at most ROWS a layer, always the same ones, and taken as they
will be: quantized to int8 and back. Every HELD-th sample is held out: what was fitted to the others is judged there.
Memory: 16 bytes for each pair of columns of each layer, whatever the samples. Stands after calibrate, before correct.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import numerics
from hwq.execute import Runner, quiet, run, to_device
from hwq.graph import Layer
from hwq.lengths import COUNT, leading
from hwq.numerics import QParams
from hwq.padding import NO_PADDING, Padding
from hwq.progress import Callback
from hwq.samples import Batch

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

ROWS = 8192
HELD = 4
# Rows gathered before they are multiplied.
_BLOCK = 512


@dataclass(slots=True, kw_only=True)
class Part:
    """Sums over columns: of them (G, K) and of their products (G, K, K), float64, and how many there were.

    shift (G, K), float32: taken off every column before it is summed, the mean of the first block: inputs that hardly
    vary around a value far from 0 would cancel otherwise. None is 0.
    """

    total: Doubles
    square: Doubles
    count: int = 0
    shift: Array | None = None
    waiting: list[Array] = field(default_factory=list)

    def add(self, rows: Array) -> None:
        """Count ``rows`` (G, R, K) in, float32."""
        self.waiting.append(rows)
        if sum(block.shape[1] for block in self.waiting) >= _BLOCK:
            self.settle()

    def settle(self) -> None:
        """Multiply what is waiting: products in float32, their sums over blocks in float64."""
        if not self.waiting:
            return
        rows = np.concatenate(self.waiting, axis=1)
        self.waiting.clear()
        if self.shift is None:
            self.shift = rows.mean(axis=1, dtype=np.float64).astype(np.float32)
        rows = rows - self.shift[:, None]
        self.total += rows.sum(axis=1, dtype=np.float64)
        self.square += rows.transpose(0, 2, 1) @ rows
        self.count += rows.shape[1]

    @property
    def mean(self) -> Doubles:
        """(G, K)."""
        own = self.total / max(self.count, 1)
        return own if self.shift is None else own + self.shift

    def about(self, mean: Doubles) -> Doubles:
        """The second moment about ``mean`` (G, K): (G, K, K)."""
        own = self.total / max(self.count, 1)
        mean = mean if self.shift is None else mean - self.shift
        cross = own[:, :, None] * mean[:, None]
        return np.asarray(
            self.square / max(self.count, 1) - cross - cross.transpose(0, 2, 1) + mean[:, :, None] * mean[:, None]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Of one layer's columns: those that corrections are fitted to, and those that they are judged on."""

    fitted: Part
    held: Part


def shape_of(layer: Layer) -> tuple[int, int]:
    """(G, K): the groups of channels that read inputs of their own, and the inputs of each of their columns."""
    assert layer.weight is not None
    groups = 1 if layer.op == "dense" else int(layer.attrs["groups"])
    return groups, layer.weight[0].size


def columns(layer: Layer, x: Array, at: npt.NDArray[np.int64]) -> Array:
    """Columns of the layer's input ``x``, one for each output position in ``at`` (flat, over N, OH, OW): (G, R, K)."""
    assert layer.weight is not None
    groups, length = shape_of(layer)
    if layer.op == "dense":
        return x.reshape(-1, length)[at][None]
    top, left, bottom, right = layer.attrs["padding"]
    if any(layer.attrs["padding"]):
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    _, kernel_h, kernel_w, _ = layer.weight.shape
    image, row, column = np.unravel_index(at, layer.output_shape[:3])
    (stride_h, stride_w), (step_h, step_w) = layer.attrs["strides"], layer.attrs["dilation"]
    rows = (row * stride_h)[:, None, None] + (np.arange(kernel_h) * step_h)[:, None]
    across = (column * stride_w)[:, None, None] + np.arange(kernel_w) * step_w
    found = x[image[:, None, None], rows, across]  # (R, KH, KW, C)
    parts = found.reshape(len(at), kernel_h * kernel_w, groups, -1).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(parts.reshape(groups, len(at), length))


def positions(layer: Layer) -> int:
    """How many columns one run of the network gives."""
    count = 1
    for size in layer.output_shape[:-1]:
        count *= size
    return count


def collect(
    runner: Runner,
    layers: Sequence[Layer],
    qparams: Mapping[str, QParams],
    batches: Iterable[Batch],
    total: int,
    progress: Callback = quiet,
    padding: Padding = NO_PADDING,
) -> dict[str, Moments]:
    """The moments of each layer over ``batches``, of which there are about ``total``; runner: the float network.

    Of inputs as quantized by ``qparams``; as they are where those have nothing of them. Of tokens of ``padding`` none.
    """
    found = {}
    for layer in layers:
        groups, length = shape_of(layer)
        parts = [Part(total=np.zeros((groups, length)), square=np.zeros((groups, length, length))) for _ in range(2)]
        found[layer.name] = Moments(fitted=parts[0], held=parts[1])
    for done, batch in enumerate(batches):
        env = run(runner, to_device(batch))
        rng = np.random.default_rng(done)
        for layer in layers:
            q = qparams.get(layer.inputs[0])
            at = drawn(runner, env, layer, batch, total, padding, rng)
            moments = found[layer.name]
            # A single sample is all there is to fit to, and to judge by.
            part = moments.held if done % HELD == HELD - 1 else moments.fitted
            rows = columns(layer, env[layer.inputs[0]].numpy(), at)
            part.add(rows if q is None else numerics.dequantize(numerics.quantize(rows, q), q))
        progress(done + 1, max(total, done + 1))
    for moments in found.values():
        moments.fitted.settle()
        moments.held.settle()
    return found


def drawn(
    runner: Runner,
    env: Mapping[str, Any],
    layer: Layer,
    batch: Batch,
    total: int,
    padding: Padding,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Which of the layer's columns of one sample, of ``total``, are taken: as ``columns`` counts them. env: of a run of
    ``runner`` on it."""
    count = positions(layer)
    varied = leading(layer.output_shape)
    if varied is not None:  # the columns of the tokens that are there come first
        count = count // varied.tokens * int(batch[COUNT][0])
    shown = padding.shown(runner, env, layer.inputs[0])
    among = np.arange(count)
    if shown is not None and count % len(shown) == 0:
        among = among[np.repeat(shown, count // len(shown))]
    wanted = min(len(among), max(1, ROWS // max(total, 1)))
    return np.asarray(np.sort(rng.choice(among, wanted, replace=False)), np.int64)


def rows_of(
    runner: Runner,
    tensors: Sequence[str],
    batches: Sequence[Batch],
    count: int,
    progress: Callback = quiet,
    padding: Padding = NO_PADDING,
) -> dict[str, tuple[Array, Array]]:
    """(fitted, held) rows of each tensor along its last axis, at most about ``count`` of each, of all ``batches``, and
    none of ``padding``."""
    found: dict[str, tuple[list[Array], list[Array]]] = {tensor: ([], []) for tensor in tensors}
    wanted = max(1, -(-count // max(1, len(batches) // HELD)))
    for done, batch in enumerate(batches):
        env = run(runner, to_device(batch))
        rng = np.random.default_rng(done)
        held = done % HELD == HELD - 1
        for tensor in tensors:
            rows = padding.values(runner, env, tensor)
            at = np.sort(
                rng.choice(len(rows), min(len(rows), wanted if held else -(-wanted // (HELD - 1))), replace=False)
            )
            found[tensor][held].append(rows[at])
        progress(done + 1, len(batches))
    width = {tensor: (runner.program.values[tensor][0][-1],) for tensor in tensors}
    fitted, judged = (
        {
            tensor: np.concatenate([np.zeros((0, *width[tensor]), np.float32), *parts[i]])
            for tensor, parts in found.items()
        }
        for i in range(2)
    )
    return {tensor: (fitted[tensor], judged[tensor]) for tensor in tensors}
