"""Real language networks in integers: as accurate as float but for what their users may lose.

Parts of the samples, in minutes on a shared machine; ``benchmarks/bench_accuracy.py`` runs all of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import text_data

import hwq

pytestmark = [pytest.mark.data, pytest.mark.slow]

STORIES, PAIRS = 24, 60


@pytest.fixture(scope="module")
def language_model(data_dir: Path) -> hwq.Model:
    assert data_dir.exists()  # skipped where it does not
    return hwq.load(text_data.stories260k())


@pytest.fixture(scope="module")
def in_float(language_model: hwq.Model) -> hwq.Artifact:
    return hwq.compile(language_model, schemes=["f32"], measure=False, threads=1)


def test_stories_in_w8a8_dyn_lose_half_a_percent_at_most(
    language_model: hwq.Model, in_float: hwq.Artifact, tmp_path: Path
) -> None:
    """Weights in int8, tokens in int8 each with a scale; and a plan's file holds how channels were smoothed."""
    judged, (calibration, *_) = text_data.stories(0, STORIES), text_data.stories(-text_data.CALIBRATE)
    found = hwq.compile(language_model, calibration=calibration, schemes=["w8a8_dyn"], measure=False, threads=1)
    before, after = (text_data.bits_per_byte(one, *judged) for one in (in_float, found))
    print(f"{before:.4f} bits per byte, {after:.4f} in w8a8_dyn; smoothed: {', '.join(found.plan.smoothing)}")
    assert after <= 1.005 * before
    assert found.plan.weight_bytes < 0.35 * in_float.plan.weight_bytes
    assert found.plan.smoothing
    found.plan.save(tmp_path / "plan.json")
    again = hwq.build(language_model, hwq.Plan.load(tmp_path / "plan.json"), threads=1)
    feed = judged[0][0]
    np.testing.assert_array_equal(found(feed), again(feed))


def test_stories_with_int4_in_groups_lose_two_percent_at_most(
    language_model: hwq.Model, in_float: hwq.Artifact
) -> None:
    """int4 and int8 mixed, at a tenth less than all in int8 has."""
    judged, (calibration, *_) = text_data.stories(0, STORIES), text_data.stories(-text_data.CALIBRATE)
    schemes = ["w8a8_dyn", "w4a8_g64_dyn"]
    budget = hwq.Budget(weight_bytes=0.26 * in_float.plan.weight_bytes)
    found = hwq.compile(
        language_model, calibration=calibration, schemes=schemes, budget=budget, sensitivity_s=0, measure=False,
        threads=1,
    )  # fmt: skip
    before, after = (text_data.bits_per_byte(one, *judged) for one in (in_float, found))
    share = found.plan.weight_bytes / in_float.plan.weight_bytes
    print(f"{before:.4f} bits per byte, {after:.4f} in {share:.1%} of the bytes")
    assert "w4a8_g64_dyn" in found.plan.schemes.values()
    assert after <= 1.02 * before


def test_minilm_in_w8a8_dyn_ranks_pairs_as_float_does(data_dir: Path, tmp_path: Path) -> None:
    """Without any samples to calibrate on."""
    assert data_dir.exists()
    if missing := text_data.minilm_missing():
        pytest.skip(missing)
    model = hwq.load(text_data.minilm(tmp_path))
    one, other, scores = text_data.sentences("test", PAIRS)
    rhos, firsts = [], []
    for scheme in ("f32", "w8a8_dyn"):
        artifact = hwq.compile(model, schemes=[scheme], measure=False, threads=1)
        firsts.append(text_data.embeddings(artifact, one))
        rhos.append(text_data.rank_correlation(firsts[-1], text_data.embeddings(artifact, other), scores))
    cosine = float((firsts[0] * firsts[1]).sum(axis=1).min())
    print(f"Spearman {rhos[0]:.4f}, in w8a8_dyn {rhos[1]:.4f}; least cosine with float's embedding {cosine:.4f}")
    assert rhos[1] >= rhos[0] - 0.004
    assert cosine > 0.98
