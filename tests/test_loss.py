"""Loss: the divergence of classifiers, noise over signal of everything else."""

from __future__ import annotations

import numpy as np
import pytest

from hwq.loss import Sums, compare, kind_of, noise_per_loss


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def test_what_an_output_is(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((3, 10)).astype(np.float32)
    assert kind_of([logits], 3) == "logits"
    assert kind_of([softmax(logits)], 3) == "probabilities"
    assert kind_of([np.abs(logits)], 3) == "logits", "rows that do not sum to 1"
    assert kind_of([np.full((3, 2), [1.5, -0.5], np.float32)], 3) == "logits", "1 in sum, but no probabilities"
    assert kind_of([logits], 1) == "values", "rows are not samples"
    assert kind_of([logits[:, :1]], 3) == "values", "one number a sample is no class"
    assert kind_of([logits[:, :, None]], 3) == "values"
    assert kind_of([logits.astype(np.int64)], 3) == "values"


def test_a_language_model_is_a_classifier_of_each_token(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((2, 5, 29))
    assert kind_of([logits], 2, 29) == kind_of([logits[0]], 1, 29) == "logits"
    assert kind_of([softmax(logits)], 2, 29) == "probabilities"
    assert kind_of([logits], 2, 30) == kind_of([logits], 2) == "values", "hidden states"
    mine = logits + 0.1 * rng.standard_normal(logits.shape)
    found, flat = (
        compare([mine], [logits], "logits"),
        compare([mine.reshape(10, 29)], [logits.reshape(10, 29)], "logits"),
    )
    assert found.rows == 10
    assert found.loss == flat.loss > 0
    unlikely = logits.copy()
    unlikely[..., 0] = -30.0
    off = unlikely.copy()
    off[..., 0] -= 10.0
    assert compare([off], [unlikely], "logits").loss < 1e-9, "what no text will say may be off"


def test_divergence_of_two_classes_is_what_it_is_by_hand() -> None:
    good, mine = np.array([[0.5, 0.5], [0.8, 0.2]]), np.array([[0.25, 0.75], [0.8, 0.2]])
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    for kind, clean, other in (("probabilities", good, mine), ("logits", np.log(good) + 3.0, np.log(mine) - 7.0)):
        found = compare([other], [clean], kind)
        assert (found.rows, found.noise, found.signal) == (2, 0.0, 0.0)
        assert found.noise_ratio == pytest.approx(np.square(other - clean).sum() / np.square(clean).sum(), rel=1e-12)
        assert found.loss == pytest.approx(first / 2, rel=1e-12)
        assert compare([clean], [clean], kind).loss == 0.0


def test_divergence_is_never_negative_nor_infinite(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((50, 1000)) * 100
    near = logits + rng.standard_normal(logits.shape) * 1e-9
    assert 0.0 <= compare([near], [logits], "logits").loss < 1e-12
    sure = np.array([[1.0, 0.0]])
    assert 0.0 < compare([sure[:, ::-1]], [sure], "probabilities").loss < 30.0


def test_values_lose_noise_over_signal_of_all_outputs() -> None:
    clean = [np.array([[3.0, 4.0]]), np.array([1.0, 2.0, 2.0])]
    mine = [np.array([[3.0, 5.0]]), np.array([1.0, 2.0, 4.0])]
    assert compare(mine, clean, "values").loss == pytest.approx(5.0 / 34.0, rel=1e-12)
    beside = compare([clean[0], mine[1]], clean, "logits")
    assert beside.loss == pytest.approx(4.0 / 9.0, rel=1e-12), "a classifier's other outputs are values"


def test_sums_of_samples_are_those_of_all(rng: np.random.Generator) -> None:
    clean = rng.standard_normal((6, 5))
    mine = clean + 0.1 * rng.standard_normal((6, 5))
    for kind in ("logits", "values"):
        parts = [compare([mine[i : i + 2]], [clean[i : i + 2]], kind) for i in (0, 2, 4)]
        whole = compare([mine], [clean], kind)
        assert (Sums() + parts[0] + parts[1] + parts[2]).loss == pytest.approx(whole.loss, rel=1e-12)
    assert Sums().loss == 0.0


def test_noise_that_goes_with_a_loss(rng: np.random.Generator) -> None:
    clean = rng.standard_normal((200, 10))
    small = [compare([clean + s * rng.standard_normal(clean.shape)], [clean], "logits") for s in (0.01, 0.02, 0.04)]
    factor = noise_per_loss([*small, Sums()])
    for one in small:
        assert one.loss * factor == pytest.approx(one.noise_ratio, rel=0.1), "a divergence grows as the noise's power"
    assert noise_per_loss([compare([clean + 1], [clean], "values")]) == 1.0
    assert noise_per_loss([Sums()]) == 1.0
