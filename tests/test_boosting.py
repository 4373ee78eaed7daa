"""Boosted trees: evaluated here as XGBoost evaluates them, kept as JSON without loss, the same every time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xgboost

from hwq.boosting import Trees, train

OPTIONS = {"max_depth": 4, "eta": 0.2, "subsample": 0.8, "colsample_bytree": 0.7}


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    features = rng.normal(size=(300, 5)).astype(np.float32)
    return features, np.sin(2 * features[:, 0]) + features[:, 1] * (features[:, 2] > 0)


def test_trees_predict_what_xgboost_does(data: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> None:
    features, wanted = data
    trees = train(features, wanted, rounds=30, options=OPTIONS)
    options = OPTIONS | {"base_score": 0.0, "nthread": 1, "tree_method": "exact", "seed": 0}
    booster = xgboost.train(options, xgboost.DMatrix(features, label=wanted), num_boost_round=30)
    new = np.concatenate([features, rng.normal(size=(200, 5)).astype(np.float32)])
    np.testing.assert_allclose(trees.predict(new), booster.predict(xgboost.DMatrix(new)), atol=2e-6)
    assert np.corrcoef(trees.predict(features), wanted)[0, 1] > 0.95


def test_training_is_deterministic(data: tuple[np.ndarray, np.ndarray]) -> None:
    one, two = (train(*data, rounds=10, options=OPTIONS).to_list() for _ in range(2))
    assert one == two


def test_json_keeps_every_split(data: tuple[np.ndarray, np.ndarray]) -> None:
    trees = train(*data, rounds=10, options=OPTIONS)
    again = Trees.from_list(json.loads(json.dumps(trees.to_list())))
    np.testing.assert_array_equal(again.predict(data[0]), trees.predict(data[0]))


def test_trees_on_top_of_others_learn_the_rest(data: tuple[np.ndarray, np.ndarray]) -> None:
    features, wanted = data
    first = train(features, wanted, rounds=5, options=OPTIONS)
    second = train(features, wanted, rounds=20, options={**OPTIONS, "max_depth": 2}, start=first.predict(features))
    both = first + second
    np.testing.assert_allclose(both.predict(features), first.predict(features) + second.predict(features), atol=1e-6)
    errors = [np.square(trees.predict(features) - wanted).mean() for trees in (first, both)]
    assert errors[1] < 0.5 * errors[0]


def test_no_trees_and_no_rows() -> None:
    none = Trees.from_list([])
    assert none.predict(np.zeros((3, 2))).tolist() == [0, 0, 0]
    leaf = Trees.from_list([[[-1], [0.5], [0], [0]]])
    assert leaf.predict(np.zeros((2, 1))).tolist() == [0.5, 0.5]
    assert (none + leaf).predict(np.zeros((1, 1))).tolist() == [0.5]
    assert leaf.predict(np.zeros((0, 1))).shape == (0,)


@pytest.mark.parametrize(
    "tree",
    [
        [[0, -1], [0.5, 1.0], [1, 0], [2, 0]],
        [[0], [0.5], [0], [0]],
        [[-1, -1], [0.5], [0], [0]],
        [[], [], [], []],
    ],
)
def test_a_damaged_tree_is_refused(tree: list[list[float]]) -> None:
    """A child that is not there, a circle, lists of different lengths, nothing."""
    with pytest.raises(ValueError, match="tree"):
        Trees.from_list([tree])


def test_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        train([[np.nan]], [1.0], rounds=1, options={})
