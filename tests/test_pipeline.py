"""The passes in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_nets import network, node, weights
from relax_cases import assert_same_numbers
from tvm import IRModule, relax

from hwq import pipeline
from hwq import relax_tools as rt
from hwq.onnx_import import import_graph
from hwq.onnx_prepare import prepare


def _imported() -> IRModule:
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]),
        node("Clip", ["n", "lo", "hi"], ["c"]),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "d"], ["y"], transB=1),
    ]
    consts = {"w": weights(4, 3, 3, 3), **{key: abs(weights(4)) + 1 for key in "sbmv"}, "d": weights(5, 4)}
    consts |= {"lo": weights(1)[0] * 0, "hi": weights(1)[0] * 0 + 6}
    return import_graph(prepare(network(nodes, (1, 3, 6, 6), consts=consts), batch=1, shapes={}))


def test_numbers_stay_and_the_end_is_at_rest() -> None:
    before = _imported()
    after = pipeline.run(before)
    relax.analysis.well_formed(after)
    assert_same_numbers(before, after, tolerance=2e-5)
    names = [rt.op_name(value) for _, value in rt.bindings_of(after)]
    assert names == ["permute_dims", "nn.conv2d", "add", "clip", "mean", "reshape", "matmul"]
    again = pipeline.run(after)
    assert [rt.op_name(value) for _, value in rt.bindings_of(again)] == names


def test_the_ir_is_dumped_after_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWQ_DUMP", str(tmp_path / "ir"))
    pipeline.run(_imported(), name="net")
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert len(names) == len(pipeline.PASSES) + 1
    assert names[0] == "net-00-import.py"
    assert names[-1].startswith(f"net-{len(pipeline.PASSES):02d}-")
    assert "R.nn.batch_norm" in (tmp_path / "ir" / names[0]).read_text()
    assert "R.nn.batch_norm" not in (tmp_path / "ir" / names[-1]).read_text()
