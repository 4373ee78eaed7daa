"""Padding: the tokens of a sample that its masks hide from all attention, as short sentences are filled up with.

Nothing else is made of what is computed for them, and of sentences filled up to one length most rows are theirs:
ranges, means and moments are taken without them. Where they are put out, a row for each token, they count as any in
losses. Stands before ``hwq.calibrate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt

from hwq.execute import Runner, seen
from hwq.graph import Graph, Layer
from hwq.scores import FAR

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """masks: each tensor whose rows are tokens, (B, T, ...) or (B * T, C), with what is added to the scores of
    attention to them, (B, H or 1, S or 1, T). A token of padding is hidden by all of these."""

    masks: Mapping[str, tuple[str, ...]]

    def shown(self, runner: Runner, env: Mapping[str, Any], tensor: str) -> npt.NDArray[np.bool_] | None:
        """Which tokens of ``tensor`` are none of padding, (B * T,); None where all are."""
        found = None
        for mask in self.masks.get(tensor, ()):
            most = seen(runner, env, mask).max(axis=(1, 2)) > FAR
            found = most if found is None else found | most
        # A sample of nothing but padding has nothing to be left out for.
        return None if found is None or found.all() or not found.any() else found.reshape(-1)

    def values(self, runner: Runner, env: Mapping[str, Any], tensor: str) -> Array:
        """What ``hwq.execute.seen`` gives of ``tensor``, as (rows, its last axis), without the rows of padding."""
        value, shown = seen(runner, env, tensor), self.shown(runner, env, tensor)
        rows = value.reshape(-1, value.shape[-1] if value.ndim else 1)
        return rows if shown is None else rows[np.repeat(shown, len(rows) // len(shown))]


NO_PADDING = Padding(masks={})
# What reads several places for one: its output's rows are not its input's, whatever their number.
_OTHERS = ("conv2d", "depthwise_conv2d", "max_pool2d", "avg_pool2d", "resize_nearest", "resize_linear")


def find_padding(graph: Graph) -> Padding:
    """The tensors of ``graph`` that may have rows of padding: those along the tokens of attention within a sequence,
    where every such attention reads a mask that depends on the sample."""
    attentions = [layer for layer in graph.layers if layer.op == "attention"]
    lines: nx.Graph[tuple[str, int, int]] = nx.Graph()
    for batch, tokens in {_tokens(layer) for layer in attentions}:
        for layer in graph.layers:
            for group in _alongside(layer):
                along = [(name, batch, tokens) for name in group if _fits(graph, name, batch, tokens)]
                nx.add_path(lines, along)
    found: dict[str, tuple[str, ...]] = {}
    for line in nx.connected_components(lines):
        within = [layer for layer in attentions if (layer.inputs[1], *_tokens(layer)) in line]
        masks = {_mask(layer) for layer in within}
        if within and None not in masks:
            found |= {name: tuple(sorted(mask for mask in masks if mask)) for name, _, _ in line}
    return Padding(masks=found)


def _tokens(layer: Layer) -> tuple[int, int]:
    """(B, T) of an attention's keys."""
    batch, tokens, _ = layer.input_shapes[1]
    return int(batch), int(tokens)


def _alongside(layer: Layer) -> tuple[tuple[str, ...], ...]:
    """The tensors of a layer that may have the same tokens."""
    if layer.op == "attention":
        return ((layer.inputs[0], layer.output), layer.inputs[1:3])
    if layer.op in _OTHERS or (layer.op == "transpose" and tuple(layer.attrs["axes"][:2]) != (0, 1)):
        return ()
    return ((*layer.inputs, layer.output),)


def _fits(graph: Graph, name: str, batch: int, tokens: int) -> bool:
    shape = graph.shapes[name]
    if graph.dtypes[name] != "float32" or len(shape) < 2:
        return False
    return shape[0] == batch * tokens if len(shape) == 2 else shape[:2] == (batch, tokens)


def _mask(layer: Layer) -> str | None:
    """The mask of each sample that an attention reads, that tells keys apart; None if it has none."""
    if layer.constants or len(layer.inputs) < (5 if layer.attrs.get("cut") else 4):
        return None
    batch, _, _, tokens = layer.input_shapes[3]
    return layer.inputs[3] if (batch, tokens) == _tokens(layer) else None
