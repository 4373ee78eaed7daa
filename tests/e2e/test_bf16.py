"""bf16 from call to saved artifact: nearer to float than int8, half of float's bytes, refused where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hwq
from hwq.cost import price_roofline
from hwq.demo import load_demo
from hwq.graph import ANCHORS
from hwq.lower import layer_workload

NAME = "x86-avx512-bf16"


def compiled(schemes: list[str] | None, **more: object) -> hwq.Artifact:
    if missing := hwq.Target.load(NAME).missing_flags():
        pytest.skip(f"{NAME} needs {', '.join(missing)}, which this CPU lacks")
    path, calibration, evaluate = load_demo()
    given = {"calibration": calibration[:8], "evaluate": evaluate, "measure": False, "threads": 1} | more
    return hwq.compile(hwq.load(path), NAME, schemes=schemes, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bf16() -> hwq.Artifact:
    return compiled(["bf16"])


def weighted(artifact: hwq.Artifact) -> dict[str, str]:
    """The layers with weights that bf16 is for, and their schemes."""
    rows = artifact.report["layers"]
    return {row["name"]: row["scheme"] for row in rows if row["op"] in ANCHORS and row["op"] != "depthwise_conv2d"}


def test_bf16_alone_is_near_to_float_and_takes_half_its_bytes(bf16: hwq.Artifact) -> None:
    """Its numbers have 8 bits each, int8's that many for a whole tensor: here at least 10 dB lie between."""
    integer, floats = compiled(["w8a8"]), compiled(["f32"])
    assert set(weighted(bf16).values()) == {"bf16"}
    near, far = (one.report["measured"]["accuracy"]["sqnr_db"][0] for one in (bf16, integer))
    assert near > far + 10
    assert bf16.report["measured"]["conversions"] == 0
    layers = {layer.name: layer for layer in hwq.load(load_demo()[0]).graph.layers}
    sizes = [{row["name"]: row["weight_bytes"] for row in one.report["layers"]} for one in (bf16, floats)]
    total = np.zeros(2)
    for name in weighted(bf16):
        layer = layers[name]
        assert layer.weight is not None
        bare = [size[name] - (0 if layer.bias is None else 4 * len(layer.bias)) for size in sizes]
        assert bare[0] >= 2 * layer.weight.size
        total += bare
    assert abs(total[0] / total[1] - 0.5) < 0.05, "but for whole vectors of channels, and pairs of inputs"


def test_losses_are_measured_and_below_int8s() -> None:
    """Sums over a plan's layers: bf16 keeps 8 bits of each number, int8 8 bits of the largest."""
    loss = {scheme: compiled([scheme]).plan.loss for scheme in ("bf16", "w8a8")}
    assert 0 < loss["bf16"] < 0.1 * loss["w8a8"]


def test_all_schemes_together() -> None:
    everything = compiled(None)
    assert any("bf16 " in row["why"] for row in everything.report["layers"]), "compared, and said so"
    assert everything.report["measured"]["drop"] is not None


def test_a_plan_with_bf16_is_kept_and_built_again(bf16: hwq.Artifact, tmp_path: Path) -> None:
    bf16.plan.save(tmp_path / "plan.json")
    plan = hwq.Plan.load(tmp_path / "plan.json")
    assert plan.schemes == bf16.plan.schemes
    pictures = load_demo()[2][0][:8]
    again = hwq.build(hwq.load(load_demo()[0]), plan, threads=1)
    np.testing.assert_array_equal(again(pictures), bf16(pictures))
    bf16.save(tmp_path / "net.hwq")
    np.testing.assert_array_equal(hwq.Artifact.load(tmp_path / "net.hwq", threads=1)(pictures), bf16(pictures))


def test_a_target_without_it_refuses() -> None:
    path, calibration, _ = load_demo()
    with pytest.raises(hwq.HwqError) as caught:
        hwq.compile(hwq.load(path), "x86-generic", calibration=calibration[:4], schemes=["bf16", "w8a8"], measure=False)
    assert caught.value.code == "scheme-not-here"
    assert caught.value.message == (
        "scheme 'bf16' is asked for, but x86-generic has no instruction for it; accepted: f32, w8a8, w4a8, w8a8_dyn"
    )


def test_a_plan_with_bf16_is_refused_by_a_target_without_it(bf16: hwq.Artifact) -> None:
    with pytest.raises(hwq.HwqError, match="which x86-generic cannot run it in; accepted: f32") as caught:
        hwq.build(hwq.load(load_demo()[0]), bf16.plan, "x86-generic")
    assert caught.value.code == "plan-illegal"


def test_without_samples_its_loss_cannot_be_measured() -> None:
    with pytest.raises(hwq.HwqError, match=r"which bf16 needs; .*schemes=\['f32'\] for none") as caught:
        compiled(["bf16"], calibration=None)
    assert caught.value.code == "samples-empty"


def test_predicted_at_about_twice_floats_rate() -> None:
    layers = [layer for layer in hwq.load(load_demo()[0]).graph.layers if layer.op == "conv2d"]
    target = hwq.Target.load(NAME)
    for layer in layers:
        times = {}
        for scheme in ("f32", "bf16"):
            workload = layer_workload(layer, scheme, "float32", 1)
            assert workload is not None
            times[scheme] = price_roofline(workload, target).latency_s
        assert times["bf16"] <= times["f32"]
