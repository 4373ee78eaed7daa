"""The certificate: intervals that cover what they say, and a predicted drop that noise really makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from demo_study import demo_artifact

from hwq.certificate import WHOLE, Z, certify, drop_interval, in_network, predicted_drop, sum_interval
from hwq.cost import COLD_S, IN_PLACE
from hwq.scheme import Cost
from hwq.verify import Accuracy


def cost(latency_s: float, low: float, high: float, source: str = "measured", weight_bytes: int = 0) -> Cost:
    return Cost(latency_s=latency_s, weight_bytes=weight_bytes, source=source, interval_s=(low, high))


def accuracy(lost: int, gained: int, samples: int, *, labels: bool = True) -> Accuracy:
    score = 0.5 if labels else None
    drop = (lost - gained) / samples
    return Accuracy(
        score=score,
        float_score=score,
        drop=drop,
        agreement=None,
        sqnr_db=(20.0,),
        samples=samples,
        changes=(lost, gained),
    )


def test_measured_kernels_have_the_interval_of_their_sum_and_errors_of_a_model_add() -> None:
    measured = [cost(2.0, 1.0, 9.0), cost(3.0, 2.0, 9.0)]
    assert sum_interval(10.0, measured) == (pytest.approx(10 * WHOLE[0]), pytest.approx(10 * WHOLE[1]))
    modelled = [cost(2.0, 1.0, 6.0, "roofline"), cost(3.0, 2.0, 5.0, "learned")]
    assert sum_interval(10.0, modelled) == (pytest.approx(8.0), pytest.approx(16.0))
    low, high = sum_interval(15.0, [*measured, *modelled])
    assert (low, high) == (pytest.approx(10 * WHOLE[0] + 3), pytest.approx(10 * WHOLE[1] + 11))
    assert sum_interval(1.0, [cost(1.0, -5.0, 2.0, "roofline")])[0] == 0.0


@pytest.mark.parametrize(("lost", "gained", "samples"), [(0.0, 0.0, 500), (0.01, 0.004, 600), (0.05, 0.05, 200)])
def test_interval_of_the_drop_covers_the_true_one(
    rng: np.random.Generator, lost: float, gained: float, samples: int
) -> None:
    """At least 85% of the time; where nothing ever changes always."""
    inside = 0
    for _ in range(1000):
        b, c, _same = rng.multinomial(samples, [lost, gained, 1 - lost - gained])
        interval = drop_interval(accuracy(int(b), int(c), samples))
        assert interval is not None
        inside += interval[0] <= lost - gained <= interval[1]
    assert inside >= 850


def test_interval_of_changed_classes_is_wilson_s() -> None:
    interval = drop_interval(accuracy(10, 0, 100, labels=False))
    assert interval is not None
    for end in interval:  # Wilson's ends are where the measured share is z standard errors of that end away
        assert abs(0.1 - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / 100))
    nothing = drop_interval(accuracy(0, 0, 100, labels=False))
    assert nothing is not None
    assert nothing[0] == pytest.approx(0.0, abs=1e-12)
    assert 0.02 < nothing[1] < 0.03


def test_what_was_measured_is_inside_also_at_the_ends() -> None:
    """Nothing lost, and everything: ends of 1e-17 had left the very 0.00% that was predicted and measured outside."""
    for n in range(1, 300):
        none, some, every = (drop_interval(accuracy(lost, 0, n, labels=False)) for lost in (0, (n + 1) // 2, n))
        assert none is not None
        assert some is not None
        assert every is not None
        assert none[0] == 0.0 < none[1] <= 1.0
        assert 0.0 < every[0] < every[1] == 1.0
        assert some[0] <= (n + 1) // 2 / n <= some[1]


def test_scores_of_a_function_have_no_interval() -> None:
    one = Accuracy(score=3.0, float_score=4.0, drop=1.0, agreement=None, sqnr_db=(1.0,), samples=5)
    assert drop_interval(one) is None


@pytest.mark.parametrize("loss", [1e-3, 1e-2, 5e-2])
def test_predicted_drop_is_what_such_noise_does(rng: np.random.Generator, loss: float) -> None:
    """The prediction is the mean of what drawn noise does."""
    outputs = rng.standard_normal((500, 5)).astype(np.float32)
    labels = np.where(rng.random(500) < 0.9, outputs.argmax(axis=1), rng.integers(0, 5, 500))
    spread = math.sqrt(loss * float(np.square(outputs).mean()))
    changed, lost = [], []
    for _ in range(400):
        noisy = outputs + spread * rng.standard_normal(outputs.shape)
        changed.append(np.mean(noisy.argmax(axis=1) != outputs.argmax(axis=1)))
        lost.append(np.mean(outputs.argmax(axis=1) == labels) - np.mean(noisy.argmax(axis=1) == labels))
    for drawn, predicted in (
        (changed, predicted_drop(outputs, None, loss)),
        (lost, predicted_drop(outputs, labels, loss)),
    ):
        assert predicted == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20)  # four standard errors


def test_no_noise_loses_nothing_and_only_classes_can_be_lost() -> None:
    outputs = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert predicted_drop(outputs, None, 0.0) == predicted_drop(np.zeros((2, 3)), None, 0.1) == 0.0
    assert predicted_drop(outputs, np.array([1, 0]), 0.0) == 0.0
    assert predicted_drop(outputs[:, :1], None, 0.1) is None
    assert predicted_drop(outputs[0], None, 0.1) is None


def test_a_model_s_interval_is_widened_to_that_inside_a_network() -> None:
    assert in_network(cost(1.0, 0.5, 2.0)) == (0.5, 2.0)
    least, most = IN_PLACE
    assert in_network(cost(1.0, 0.5, 2.0, "learned")) == pytest.approx((0.5 * least, 2.0 * most + COLD_S))


def test_figures_of_a_certificate() -> None:
    found = certify(
        predicted_s=3.2,
        measured_s=4.0,
        costs={"a": cost(1.0, 0.9, 1.1, weight_bytes=10), "b": cost(2.0, 1.0, 3.0, weight_bytes=5)},
        times_s={"a": 1.25, "b": 2.5, "t:quantize": 0.1},
        predicted_bytes=15,
        sizes={"a": 10, "b": 9},
        drop=0.0,
        noise=0.01,
        accuracy=accuracy(1, 0, 100),
    )
    assert found["latency_s"]["error"] == pytest.approx(-0.2)
    assert not found["latency_s"]["inside"]
    assert found["weight_bytes"] == {
        "predicted": 15,
        "measured": 19,
        "error": pytest.approx(-4 / 19),
        "interval": None,
        "inside": None,
    }
    layers = found["layers"]
    assert (layers["count"], layers["inside"], layers["median_error"]) == (2, 1, pytest.approx(0.2))
    assert layers["other_bytes"] == {"b": 4}
    assert not layers["times"]["a"]["inside"]
    assert found["drop"]["predicted"] == 0.0
    assert found["drop"]["inside"]
    assert found["sqnr_db"] == {"predicted": pytest.approx(20.0), "measured": [20.0]}


def test_every_artifact_has_its_certificate() -> None:
    report = demo_artifact().report
    found = report["certificate"]
    assert found["latency_s"]["measured"] == report["measured"]["latency_s"]
    assert found["latency_s"]["predicted"] == report["predicted"]["latency_s"]
    assert found["weight_bytes"]["measured"] == report["measured"]["weight_bytes"]
    kernels = [row["name"] for row in report["layers"] if row["measured_s"]]
    assert list(found["layers"]["times"]) == kernels
    low, high = found["drop"]["interval"]
    assert low <= found["drop"]["measured"] <= high
    assert found["drop"]["samples"] == report["measured"]["accuracy"]["samples"]
    assert found["drop"]["predicted"] == report["predicted"]["drop"]
    assert 0 <= found["drop"]["predicted"] < 0.2
