"""Boosted trees: trained by XGBoost, kept as plain numbers, evaluated by NumPy.

XGBoost takes a second to import and brings threads of its own; a prediction needs neither. What it writes for a model
is ten times as large as the splits and leaves alone, which are all that is kept here. Values are float32, as there, so
that both give the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Table = npt.NDArray[np.float32]
# A leaf points at itself, so that a walk of any length ends there.
_LEAF = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trees:
    """Arrays of one row a tree and one column a node, the root first; shorter trees are filled up with leaves of 0.

    feature: -1 at a leaf. value: at a split, below which the left child is next, at a leaf what the tree adds.
    """

    feature: npt.NDArray[np.int16]
    value: Table
    left: npt.NDArray[np.int16]
    right: npt.NDArray[np.int16]

    def predict(self, features: npt.ArrayLike) -> Vector:
        """The sum of all trees for each row of ``features`` (rows, features); no values may be missing."""
        given = np.asarray(features, np.float32)
        total = np.zeros(len(given))
        if not len(self.feature) or not len(given):
            return total
        trees = np.arange(len(self.feature))[None]
        node = np.zeros((len(given), len(self.feature)), np.int64)
        rows = np.arange(len(given))[:, None]
        while True:
            feature = self.feature[trees, node]
            if (feature == _LEAF).all():
                total += self.value[trees, node].sum(axis=1, dtype=np.float64)
                return total
            below = given[rows, np.maximum(feature, 0)] < self.value[trees, node]
            down = np.where(below, self.left[trees, node], self.right[trees, node])
            node = np.where(feature == _LEAF, node, down)

    def __add__(self, other: Trees) -> Trees:
        """Both sums together."""
        width = max(self.feature.shape[1], other.feature.shape[1])
        one, two = _widened(self, width), _widened(other, width)
        return Trees(
            feature=np.concatenate([one.feature, two.feature]),
            value=np.concatenate([one.value, two.value]),
            left=np.concatenate([one.left, two.left]),
            right=np.concatenate([one.right, two.right]),
        )

    def to_list(self) -> list[list[list[float]]]:
        """For JSON: for each tree its features, values, left and right children, without what fills it up."""
        found = []
        for feature, value, left, right in zip(self.feature, self.value, self.left, self.right, strict=True):
            size = max(1, int(max(left.max(), right.max())) + 1)
            values = [float(str(number)) for number in value[:size]]  # the fewest digits that read back as the same
            found.append([feature[:size].tolist(), values, left[:size].tolist(), right[:size].tolist()])
        return found

    @staticmethod
    def from_list(trees: Sequence[Sequence[Sequence[float]]]) -> Trees:
        """What ``to_list`` gave. Raises ValueError or TypeError for anything else."""
        made = [
            _widened_row(*(np.asarray(column, kind) for column, kind in zip(tree, _KINDS, strict=True)))
            for tree in trees
        ]
        width = max((len(tree[0]) for tree in made), default=1)
        filled = [[_filled(column, width, i == 0) for i, column in enumerate(tree)] for tree in made]
        columns = [
            np.array([tree[i] for tree in filled], kind).reshape(len(made), width) for i, kind in enumerate(_KINDS)
        ]
        return Trees(feature=columns[0], value=columns[1], left=columns[2], right=columns[3])


_KINDS: tuple[Any, ...] = (np.int16, np.float32, np.int16, np.int16)


def _widened_row(*columns: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1 or not len(columns[0]):
        raise ValueError("a tree is four lists of one length")
    size = len(columns[0])
    if any((child < 0).any() or (child >= size).any() for child in columns[2:]):
        raise ValueError("a tree's child is not in it")
    at = np.arange(size)
    if ((columns[0] != _LEAF) & ((columns[2] <= at) | (columns[3] <= at))).any():
        raise ValueError("a tree's child stands before it")
    return columns


def _filled(column: npt.NDArray[Any], width: int, leaves: bool) -> npt.NDArray[Any]:
    return np.concatenate([column, np.full(width - len(column), _LEAF if leaves else 0, column.dtype)])


def _widened(trees: Trees, width: int) -> Trees:
    more = ((0, 0), (0, width - trees.feature.shape[1]))
    return Trees(
        feature=np.pad(trees.feature, more, constant_values=_LEAF),
        value=np.pad(trees.value, more),
        left=np.pad(trees.left, more),
        right=np.pad(trees.right, more),
    )


def train(
    features: npt.ArrayLike,
    wanted: npt.ArrayLike,
    *,
    rounds: int,
    options: Mapping[str, Any],
    start: npt.ArrayLike | None = None,
) -> Trees:
    """Trees whose sum, on top of ``start`` (default 0), comes near ``wanted``. Same arguments, same trees.

    options: XGBoost's own ("max_depth", "eta", ...); the loss is the squared error unless they name another.
    """
    import xgboost

    given, goal = np.asarray(features, np.float32), np.asarray(wanted, np.float64)
    if not np.isfinite(given).all() or not np.isfinite(goal).all():
        raise ValueError("features or values that are not numbers")
    data = xgboost.DMatrix(given, label=goal, base_margin=np.zeros(len(goal)) if start is None else np.asarray(start))
    fixed = {"base_score": 0.0, "nthread": 1, "tree_method": "exact", "seed": 0, "verbosity": 0}
    booster = xgboost.train({"objective": "reg:squarederror"} | dict(options) | fixed, data, num_boost_round=rounds)
    model = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]["model"]
    return Trees.from_list([_plain(tree) for tree in model["trees"]])


def _plain(tree: Mapping[str, Any]) -> list[list[float]]:
    """One of XGBoost's trees in our form. It keeps a leaf's value where a split has its threshold; no child is -1."""
    leaf = [child == -1 for child in tree["left_children"]]
    return [
        [_LEAF if end else index for end, index in zip(leaf, tree["split_indices"], strict=True)],
        list(tree["split_conditions"]),
        [max(0, child) for child in tree["left_children"]],
        [max(0, child) for child in tree["right_children"]],
    ]
