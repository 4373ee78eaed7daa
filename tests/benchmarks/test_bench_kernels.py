"""The kernels' benchmark: its options, the programs of its cases, the arithmetic of limits. Nothing is timed here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bench_kernels
import numpy as np
import pytest
from bench_kernels import (
    INT4_BARS,
    Options,
    Row,
    bar_of,
    beside_winograd,
    bound,
    compiled,
    instruction_of,
    int4_lines,
    jobs_of,
    level_of,
    parse,
    row_of,
    selected,
    shown_row,
)
from kernel_cases import CASES, Case, program_of, schemes_of
from limits import Limits

from hwq.cost import op_macs
from hwq.errors import HwqError
from hwq.execute import bind, run, to_device
from hwq.reference import evaluate
from hwq.scheme import SCHEMES
from hwq.target import Target

LIMITS = Limits(
    macs_per_s={"fma": 50e9, "vpdpbusd": 200e9, "tdpbusd": 2000e9},
    bytes_per_s={"L1": 200e9, "L2": 100e9, "L3": 50e9, "memory": 20e9},
)
VNNI = Target.load("x86-avx512-vnni")


def _case(name: str) -> Case:
    (case,) = (case for case in CASES if case.name == name)
    return case


def _row(scheme: str = "w8a8", us: float = 10.0, gmacs: float = 100.0, name: str = "conv2d") -> Row:
    return Row(
        name=name,
        scheme=scheme,
        schedule="cpu/conv2d:1",
        us=us,
        gmacs=gmacs,
        gbytes=1.0,
        limit="vpdpbusd",
        share=0.5,
    )


def test_everything_is_selected_by_default() -> None:
    assert selected(parse([])) == list(CASES)
    assert len({case.name for case in CASES}) == len(CASES)


def test_options_are_read(tmp_path: Path) -> None:
    options = parse(
        ["--schemes", "w8a8,f32", "--ops", "dense", "--match", "4096", "--threads", "2", "--json", "x.json"]
    )
    assert options == Options(
        schemes=("w8a8", "f32"), ops=("dense",), match="4096", threads=2, target="host", json=Path("x.json")
    )
    assert {case.op for case in selected(options)} == {"dense"}
    assert {job.scheme for job in jobs_of(replace(options, match="1x2048"), VNNI)} == {"w8a8", "f32"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--schemes", "w9a9"], "w9a9 are not known"),
        (["--ops", "conv3d"], "conv3d are not known; accepted: conv2d"),
        (["--threads", "0"], "--threads 0"),
        (["--match", "57x57"], "no kernel has '57x57' in its name"),
    ],
)
def test_what_is_not_known_is_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "op",
    [
        *("depthwise_conv2d", "dense", "max_pool2d", "avg_pool2d", "add", "multiply", "unary", "concat"),
        *("resize_nearest", "resize_linear", "quantize", "dequantize", "transpose", "softmax", "layer_norm"),
    ],
)
def test_a_program_is_the_layer_it_says(op: str) -> None:
    case = min((it for it in CASES if it.op == op), key=lambda it: int(np.prod(it.output)))
    target = Target.load("host")
    for scheme in schemes_of(case, target):
        _, step = program_of(case, scheme, target, 1)
        assert step.workload is not None
        assert (step.workload.scheme, step.workload.op, step.workload.output_shape) == (scheme, op, case.output)
        to_bytes = SCHEMES[scheme].domain == "int8" and op != "dequantize"
        assert step.workload.out_dtype == ("int8" if to_bytes else "float32")


@pytest.mark.parametrize(
    ("match", "scheme"),
    [
        *(("quantize 1x3x224", "w8a8"), ("dequantize", "w8a8"), ("resize_linear", "w8a8"), ("32 groups", "w8a8")),
        *(("layer_norm", "f32"), ("softmax", "f32")),
    ],
)
def test_a_program_runs_and_equals_the_reference(match: str, scheme: str, rng: np.random.Generator) -> None:
    """Those of steps or numbers that the benchmark makes itself. Floats are within 1e-4: the families' own tests have
    what they may differ by."""
    target = Target.load("host")
    jobs, kernels = compiled(jobs_of(parse(["--match", match, "--schemes", scheme]), target), target)
    assert jobs
    for job in jobs:
        inputs = {name: rng.integers(0, 100, shape).astype(dtype)
                  for name, (shape, dtype) in job.program.values.items() if name in job.step.inputs}  # fmt: skip
        found = run(bind(job.program, kernels), to_device(inputs))[job.step.output].numpy()
        assert job.step.workload is not None
        wanted = evaluate(job.step.workload, (*inputs.values(), *job.step.constants), target.activation_storage)
        limit = 1e-4 if scheme == "f32" else 0.0
        np.testing.assert_allclose(found, wanted, rtol=limit, atol=limit)


def test_convolutions_have_the_products_of_their_shape() -> None:
    for name, macs in (
        ("conv2d 224x224x3->64 7x7/2", 112 * 112 * 64 * 147),
        ("conv2d 56x56x256->512 1x1/2", 28 * 28 * 512 * 256),
        ("conv2d 7x7x512->512 3x3/1", 49 * 512 * 512 * 9),
    ):
        _, step = program_of(_case(name), "w8a8", VNNI, 1)
        assert step.workload is not None
        assert op_macs(step.workload) == macs


def test_the_longer_of_products_and_bytes_binds() -> None:
    assert bound(2000, "vpdpbusd", [(100, "L2")], LIMITS, 1) == ("vpdpbusd", pytest.approx(10e-9))
    assert bound(2000, "vpdpbusd", [(100, "L2")], LIMITS, 2) == ("vpdpbusd", pytest.approx(5e-9))
    assert bound(0, "vector", [(100, "L2")], LIMITS, 1) == ("L2", pytest.approx(1e-9))
    held = [(400, "memory"), (100, "L1")]
    assert bound(2000, "vpdpbusd", held, LIMITS, 1) == ("memory", pytest.approx(20.5e-9))
    assert bound(2000, "vpdpbusd", held, LIMITS, 2) == ("memory", pytest.approx(20.25e-9))


def test_bytes_are_held_by_the_nearest_level() -> None:
    sizes = [VNNI.l1_bytes, VNNI.l1_bytes + 1, VNNI.l2_bytes + 1, VNNI.l3_bytes + 1]
    assert [level_of(size, VNNI, 1) for size in sizes] == ["L1", "L2", "L3", "memory"]
    assert [level_of(size, VNNI, 2) for size in sizes] == ["L1", "L1", "L2", "memory"]
    assert level_of(VNNI.l2_bytes + 1, replace(VNNI, l3_bytes=0), 1) == "memory"


def test_instructions_come_from_the_target() -> None:
    assert instruction_of("conv2d", "w8a8", VNNI) == "vpdpbusd"
    assert instruction_of("conv2d", "w4a8", Target.load("x86-avx2")) == "vpmaddwd"
    assert instruction_of("conv2d", "bf16", Target.load("x86-avx512-bf16")) == "vdpbf16ps"
    assert instruction_of("add", "f32", VNNI) == "fma"
    assert instruction_of("add", "w8a8", VNNI) == "vector"


def test_bars_are_shares_or_rates() -> None:
    case = _case("conv2d 56x56x64->256 1x1/1")
    held = [("vpdpbusd", 149.0), ("vpdpbusd", 151.0), ("tdpbusd", 690.0), ("tdpbusd", 710.0), ("tdpbusd", 910.0)]
    words = [bar_of(case, _row(gmacs=gmacs), instruction, LIMITS, 1) for instruction, gmacs in held]
    assert words == ["missed", "met", "missed", "met", "met"]
    assert bar_of(_case("conv2d 7x7x512->512 3x3/1"), _row(gmacs=910.0), "tdpbusd", LIMITS, 1) == "met"  # 45%
    for name in ("conv2d 56x56x64->256 1x1/1 +residual", "conv2d 224x224x3->64 7x7/2", "conv2d 56x56x128->128 3x3/2"):
        assert bar_of(_case(name), _row(gmacs=151.0), "vpdpbusd", LIMITS, 1) == "met"
        assert bar_of(_case(name), _row(gmacs=149.0), "vpdpbusd", LIMITS, 1) == "missed"
        assert bar_of(_case(name), _row(gmacs=910.0), "tdpbusd", LIMITS, 1) == ""
    winograd = replace(_row(gmacs=400.0), schedule="x86/winograd:3")
    assert bar_of(_case("conv2d 28x28x128->128 3x3/1"), winograd, "vpdpbusd", LIMITS, 1) == ""
    assert bar_of(_case("conv2d 56x56x128->128 3x3/1 32 groups"), _row(), "vpdpbusd", LIMITS, 1) == ""
    assert bar_of(case, _row("w4a8"), "vpdpbusd", LIMITS, 1) == ""
    assert bar_of(case, _row(), "vpdpbusd", LIMITS, 2) == ""
    assert bar_of(case, _row(), "vpmaddwd", LIMITS, 1) == ""
    assert bar_of(_case("dense 1x2048->1000"), _row(), "vpdpbusd", LIMITS, 1) == ""


def test_a_layer_of_winograd_is_timed_directly_too() -> None:
    jobs, kernels = compiled(jobs_of(parse(["--match", "28x28x128->128 3x3/1", "--schemes", "w8a8"]), VNNI), VNNI)
    assert [kernels.of(job.step).schedule.split(":")[0] for job in jobs] == ["x86/winograd"]
    (job,), direct = beside_winograd(jobs, kernels, VNNI)
    row = row_of(job, 1e-3, direct, LIMITS, VNNI, 1)
    assert row.name == "conv2d 28x28x128->128 3x3/1 direct"
    assert row.schedule.startswith("cpu/conv2d")
    assert row.bar == "missed"
    jobs, kernels = compiled(jobs_of(parse(["--match", "dense 1x2048", "--schemes", "w8a8"]), VNNI), VNNI)
    assert beside_winograd(jobs, kernels, VNNI)[0] == []


def test_int4_is_held_against_int8() -> None:
    assert set(INT4_BARS) <= {case.name for case in CASES}
    name = "dense 1x4096->4096 weights in memory"
    rows = [_row("w8a8", 100.0, name=name), _row("w4a8", 50.0, name=name), _row("w4a8", 1.0), _row("f32", 1.0)]
    assert int4_lines(rows)[3:] == [f"| {name} | 0.50 <= 0.59: met |"]
    assert int4_lines(rows[:1]) == []


def test_a_kernel_is_compiled_and_its_figures_follow_from_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    target = Target.load("host")
    options = parse(["--match", "dense 1x2048", "--schemes", "w8a8"])
    jobs, kernels = compiled(jobs_of(options, target), target)
    (job,) = jobs
    row = row_of(job, 1e-3, kernels, LIMITS, target, 1)
    assert row.us == pytest.approx(1000)
    assert row.gmacs == pytest.approx(2048 * 1000 / 1e-3 / 1e9)
    assert row.gbytes * 1e9 * 1e-3 == pytest.approx(2048 * 1000 + 2048 + 1000 + 8 * 1000, rel=0.05)
    assert row.bar == ""
    assert row.schedule.startswith("cpu/dense")
    assert shown_row(row).count("|") == 10
    inputs = {name: np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
              for name, (shape, dtype) in job.program.values.items() if name in job.step.inputs}  # fmt: skip
    found = run(bind(job.program, kernels), to_device(inputs))[job.step.output].numpy()
    assert job.step.workload is not None
    wanted = evaluate(job.step.workload, (*inputs.values(), *job.step.constants), target.activation_storage)
    np.testing.assert_array_equal(found, wanted)


def test_a_job_without_a_kernel_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target.load("host")
    jobs = jobs_of(parse(["--match", "1x2048", "--schemes", "w8a8,f32"]), target)
    real = bench_kernels.compile_kernels

    def refuse(programs: list[object], *rest: object) -> object:
        if any(step.workload.scheme == "f32" for program in programs for step in program.steps):  # type: ignore[attr-defined]
            raise HwqError("kernel-missing", "no kernel")
        return real(programs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_kernels, "compile_kernels", refuse)
    kept, kernels = compiled(jobs, target)
    assert [job.scheme for job in kept] == ["w8a8"]
    assert [workload.scheme for workload in kernels.kernels] == ["w8a8"]
    assert "in f32 is left out: kernel-missing" in capsys.readouterr().out
