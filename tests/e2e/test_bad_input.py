"""Bad input, from Python and from the shell: one clear sentence, a stable code, an exit code, and nothing half done.

The rows are those of the README's table that a user can reach with files and options.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_files import SAMPLES, write_bad_files
from demo_study import demo_artifact, demo_model, demo_pictures
from shell_runs import DEMO, hwq

import hwq as face
from hwq.errors import HwqError
from hwq.samples import read_file
from hwq.scheme import Budget

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bad_files(tmp_path_factory.mktemp("bad"))


def compile_demo(**options: Any) -> Any:
    return face.compile(demo_model(), **{"calibration": SAMPLES, "threads": 1, "measure": False, **options})


def samples(path: Path) -> Any:
    return read_file(path, ["image"])


Call = Callable[[Path], Any]
# code, what the sentence says, the call in Python, and the same from the shell; {} is the folder. The shell's sentence
# may name options where Python's names arguments, so each says at least the texts given.
OPTIONS = "--threads 1 --no-measure -o {}/out.hwq"
GIVEN = f"--calib {{}}/calibration.npz {OPTIONS}"
CASES: dict[str, tuple[str, tuple[str, ...], Call | None, str | None]] = {
    "model missing": (
        "model-missing",
        ("nothing.onnx", "does not exist"),
        lambda at: face.load(at / "nothing.onnx"),
        f"compile {{}}/nothing.onnx {OPTIONS}",  # of two faults, with calibration missing too, the first
    ),
    "model truncated": (
        "model-invalid",
        ("truncated.onnx",),
        lambda at: face.load(at / "truncated.onnx"),
        f"compile {{}}/truncated.onnx {GIVEN}",
    ),
    "model no ONNX": (
        "model-invalid",
        ("text.onnx",),
        lambda at: face.load(at / "text.onnx"),
        f"compile {{}}/text.onnx {GIVEN}",
    ),
    "model of another kind": (
        "model-kind",
        ("ai.onnx.ml", "accepted: an ONNX neural network"),
        lambda at: face.load(at / "classical.onnx"),
        f"compile {{}}/classical.onnx {GIVEN}",
    ),
    "model of an old opset": (
        "model-opset",
        ("opset 7", "accepted: 8 to 21"),
        lambda at: face.load(at / "old.onnx"),
        f"compile {{}}/old.onnx {GIVEN}",
    ),
    "free dimension": (
        "model-dynamic",
        ("dimension 2 (H) of input 'x' is free",),
        lambda at: face.load(at / "dynamic.onnx"),
        f"compile {{}}/dynamic.onnx {GIVEN}",
    ),
    "shape that does not fit": (
        "shapes-invalid",
        ("accepted by the model: (free, 3, free, 8)",),
        lambda at: face.load(at / "dynamic.onnx", shapes={"x": (1, 4, 8, 8)}),
        f"compile {{}}/dynamic.onnx --shape x=1x4x8x8 {GIVEN}",
    ),
    "shape that is none": (
        "shapes-invalid",
        ("--shape is 'x=1,4'", "accepted: an input and its lengths"),
        None,
        f"compile {{}}/dynamic.onnx --shape x=1,4 {GIVEN}",
    ),
    "unsupported operators": (
        "model-unsupported",
        ("DeformConv (1", "Det (2"),
        lambda at: face.load(at / "unsupported.onnx"),
        f"compile {{}}/unsupported.onnx {GIVEN}",
    ),
    "calibration missing": (
        "samples-empty",
        ("missing", "accepted: "),
        lambda at: compile_demo(calibration=None),
        f"compile {DEMO} {OPTIONS}",
    ),
    "calibration file missing": (
        "samples-missing",
        ("nothing.npz", "No such file"),
        lambda at: samples(at / "nothing.npz"),
        f"compile {DEMO} --calib {{}}/nothing.npz {OPTIONS}",
    ),
    "calibration file of another kind": (
        "samples-invalid",
        ("plan.json", "accepted: an .npz"),
        lambda at: samples(at / "plan.json"),
        f"compile {DEMO} --calib {{}}/plan.json {OPTIONS}",
    ),
    "calibration of other names": (
        "samples-invalid",
        ("holds 'picture'; accepted: 'image' (or x)",),
        lambda at: samples(at / "names.npz"),
        f"compile {DEMO} --calib {{}}/names.npz {OPTIONS}",
    ),
    "calibration of the wrong shape": (
        "input-shape",
        ("calibration", "'image'", "(16, 1, 8, 16)", "accepted: (N, 1, 16, 16)"),
        lambda at: compile_demo(calibration=samples(at / "shape.npz")[0]),
        f"compile {DEMO} --calib {{}}/shape.npz {OPTIONS}",
    ),
    "calibration of the wrong type": (
        "input-type",
        ("calibration", "'image'", "uint8", "accepted: float32"),
        lambda at: compile_demo(calibration=samples(at / "type.npz")[0]),
        f"compile {DEMO} --calib {{}}/type.npz {OPTIONS}",
    ),
    "calibration with NaN": (
        "input-nan",
        ("calibration", "'image'", "NaN", "sample 0"),
        lambda at: compile_demo(calibration=samples(at / "nan.npz")[0]),
        f"compile {DEMO} --calib {{}}/nan.npz {OPTIONS}",
    ),
    "calibration empty": (
        "samples-empty",
        ("calibration", "no samples"),
        lambda at: compile_demo(calibration=samples(at / "empty.npz")[0]),
        f"compile {DEMO} --calib {{}}/empty.npz {OPTIONS}",
    ),
    "constant activation": (
        "constant-activation",
        ("one value 0.25 on every", "accepted: samples on which it varies"),
        lambda at: compile_demo(calibration=samples(at / "constant.npz")[0]),
        f"compile {DEMO} --calib {{}}/constant.npz {OPTIONS}",
    ),
    "evaluation without labels": (
        "samples-invalid",
        ("labels",),
        None,
        f"compile {DEMO} --eval {{}}/calibration.npz {GIVEN}",
    ),
    "labels that are no classes": (
        "labels-invalid",
        ("10", "accepted: 0 to 9"),
        lambda at: compile_demo(evaluate=samples(at / "classes.npz")),
        f"compile {DEMO} --eval {{}}/classes.npz {GIVEN}",
    ),
    "impossible drop": (
        "budget-impossible",
        ("drop 0.00% cannot be met", "the closest", "loses"),
        lambda at: compile_demo(budget=Budget(drop=0.0), schemes=["w4a8"], evaluate=hopeless()),
        None,  # whose scores are labels', which int4 weights keep on these pictures
    ),
    "impossible latency": (
        "budget-impossible",
        ("latency 1e-06 ms", "the closest that can be met is"),
        lambda at: compile_demo(budget=Budget(latency_s=1e-9)),
        f"compile {DEMO} --max-latency 0.001us {GIVEN}",
    ),
    "impossible size": (
        "budget-impossible",
        (" 1000", "the closest that can be met is"),
        lambda at: compile_demo(budget=Budget(weight_bytes=1000)),
        f"plan {DEMO} --max-size 1kB {GIVEN}",
    ),
    "negative budget": (
        "budget-invalid",
        ("latency", "accepted: a positive number"),
        lambda at: compile_demo(budget=Budget(latency_s=-1.0)),
        f"compile {DEMO} --max-latency 0ms {GIVEN}",
    ),
    "budget without a unit": (
        "quantity-invalid",
        ("--max-latency is '3'; accepted: ",),
        None,
        f"compile {DEMO} --max-latency 3 {GIVEN}",
    ),
    "unknown target": (
        "target-unknown",
        ("'x86-avx3'", "accepted: host, ", "x86-avx2"),
        lambda at: compile_demo(target="x86-avx3"),
        f"compile {DEMO} --target x86-avx3 {GIVEN}",
    ),
    "broken target file": (
        "target-invalid",
        ("target.toml",),
        lambda at: compile_demo(target=at / "target.toml"),
        f"compile {DEMO} --target {{}}/target.toml {GIVEN}",
    ),
    "target without kernels": (
        "target-no-build",
        ("cuda-t4 cannot be built yet", "host"),
        lambda at: compile_demo(target="cuda-t4"),
        f"compile {DEMO} --target cuda-t4 {GIVEN}",
    ),
    "unknown scheme": (
        "scheme-unknown",
        ("'w2a2'", "accepted: f32, bf16, w8a8, w4a8, w4a8_g64"),
        lambda at: compile_demo(schemes=["w8a8", "w2a2"]),
        f"compile {DEMO} --schemes w8a8,w2a2 {GIVEN}",
    ),
    "no scheme": (
        "scheme-unknown",
        ("schemes is empty",),
        lambda at: compile_demo(schemes=[]),
        f"compile {DEMO} --schemes , {GIVEN}",
    ),
    "unknown observer": (
        "observer-unknown",
        ("'median'", "accepted: minmax, percentile, mse, entropy"),
        lambda at: compile_demo(observer="median"),
        f"compile {DEMO} --observer median {GIVEN}",
    ),
    "trials": (
        "trials-invalid",
        ("trials is -1", "a whole number of at least 0"),
        lambda at: compile_demo(trials=-1),
        f"compile {DEMO} --trials -1 {GIVEN}",
    ),
    "artifact missing": (
        "artifact-missing",
        ("nothing.hwq", "No such file"),
        lambda at: face.Artifact.load(at / "nothing.hwq"),
        "bench {}/nothing.hwq",
    ),
    "artifact truncated": (
        "artifact-broken",
        ("truncated.hwq", "truncated"),
        lambda at: face.Artifact.load(at / "truncated.hwq"),
        "explain {}/truncated.hwq",
    ),
    "artifact of another kind": (
        "artifact-broken",
        ("plan.json", "of another kind"),
        lambda at: face.Artifact.load(at / "plan.json"),
        "run {}/plan.json {}/calibration.npz",
    ),
    "artifact for another CPU": (
        "cpu-lacks",
        ("needs amx_future, which this CPU lacks",),
        lambda at: face.Artifact.load(at / "foreign.hwq").benchmark(),
        "bench {}/foreign.hwq",
    ),
    "samples that do not fit the artifact": (
        "input-shape",
        ("(16, 1, 8, 16)", "accepted: (N, 1, 16, 16)"),
        lambda at: demo_artifact()(samples(at / "shape.npz")[0]),
        "run {}/demo.hwq {}/shape.npz",
    ),
    "plan missing": (
        "plan-missing",
        ("nothing.json", "No such file"),
        lambda at: face.Plan.load(at / "nothing.json"),
        f"compile {DEMO} --plan {{}}/nothing.json -o {{}}/out.hwq",
    ),
    "plan broken": (
        "plan-invalid",
        ("plan-broken.json", "not JSON at line"),
        lambda at: face.Plan.load(at / "plan-broken.json"),
        f"compile {DEMO} --plan {{}}/plan-broken.json -o {{}}/out.hwq",
    ),
    "plan of another model": (
        "plan-other",
        ("weights, batch size or source differ", "accepted: the same model, loaded alike"),
        lambda at: face.build(demo_model(), face.Plan.load(at / "plan-other.json")),
        f"compile {DEMO} --plan {{}}/plan-other.json -o {{}}/out.hwq",
    ),
    "plan of a layer that the model lacks": (
        "plan-layers",
        ("'block9.conv1', which the model lacks", "did you mean"),
        lambda at: face.build(demo_model(), face.Plan.load(at / "plan-layer.json")),
        f"compile {DEMO} --plan {{}}/plan-layer.json -o {{}}/out.hwq",
    ),
    "plan that lacks a layer": (
        "plan-layers",
        ("lacks 'stem' of the model",),
        lambda at: face.build(demo_model(), face.Plan.load(at / "plan-missing.json")),
        f"compile {DEMO} --plan {{}}/plan-missing.json -o {{}}/out.hwq",
    ),
    "plan of an unknown scheme": (
        "scheme-unknown",
        ("layer 'stem'", "w2a2", "accepted: f32, bf16, w8a8, w4a8, w4a8_g64"),
        lambda at: face.Plan.load(at / "plan-scheme.json"),
        f"compile {DEMO} --plan {{}}/plan-scheme.json -o {{}}/out.hwq",
    ),
    "plan that the target cannot run": (
        "plan-illegal",
        ("'pool'", "'w4a8'", "accepted: f32, w8a8"),
        lambda at: face.build(demo_model(), face.Plan.load(at / "plan-illegal.json")),
        f"compile {DEMO} --plan {{}}/plan-illegal.json -o {{}}/out.hwq",
    ),
    "plan without ranges": (
        "plan-ranges",
        ("holds no range of tensor",),
        lambda at: face.build(demo_model(), face.Plan.load(at / "plan-ranges.json")),
        f"compile {DEMO} --plan {{}}/plan-ranges.json -o {{}}/out.hwq",
    ),
    "output in no folder": (
        "save-failed",
        ("nowhere/out", "cannot write"),
        lambda at: demo_artifact().save(at / "nowhere" / "out.hwq"),
        f"compile {DEMO} --calib {{}}/calibration.npz -o {{}}/nowhere/out.hwq",
    ),
    "output that is a folder": (
        "save-failed",
        ("cannot write", "folder"),
        None,
        f"compile {DEMO} --calib {{}}/calibration.npz -o {{}}",
    ),
}


def hopeless() -> Callable[[Any], float]:
    """A score that only float keeps."""
    clean = None

    def score(run: Any) -> float:
        nonlocal clean
        outputs = run(demo_pictures()[0][:4])
        clean = outputs if clean is None else clean
        return float((outputs == clean).mean())

    return score


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2]])
def test_python_raises_it(case: str, bad: Path) -> None:
    code, texts, call, _ = CASES[case]
    assert call is not None
    with pytest.raises(HwqError) as caught:
        call(bad)
    check(caught.value.code, caught.value.message, code, texts)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][3]])
def test_the_shell_says_it(case: str, bad: Path, capsys: Capture) -> None:
    code, texts, _, line = CASES[case]
    assert line is not None
    before = set(bad.iterdir())
    args = [part.replace("{}", str(bad)) for part in line.split()]
    ended = hwq(capsys, *args, "--json")
    assert ended.status == 1
    check(ended.json["error"]["code"], ended.sentence, code, texts)
    assert ended.json["error"]["message"] == ended.sentence
    assert set(bad.iterdir()) == before, "nothing is left behind"


def check(found: str, sentence: str, code: str, texts: tuple[str, ...]) -> None:
    assert found == code, sentence
    assert "\n" not in sentence.strip()
    assert len(sentence) < 500
    for text in texts:
        assert text in sentence


# Arguments that only Python can get wrong


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"calibration": 7}, "input-type"),
        ({"calibration": [SAMPLES[0]]}, "input-shape"),
        ({"calibration": []}, "samples-empty"),
        ({"calibration": iter([])}, "samples-empty"),
        ({"calibration": {"picture": SAMPLES}}, "input-name"),
        ({"evaluate": demo_pictures()[0]}, "evaluate-invalid"),
        ({"evaluate": lambda run: None}, "evaluate-invalid"),
        ({"threads": 0}, "threads-invalid"),
        ({"target": 7}, "target-unknown"),
        ({"schemes": "w9"}, "scheme-unknown"),
        ({"work_dir": DEMO}, "save-failed"),
    ],
)
def test_arguments_of_python(options: dict[str, Any], code: str) -> None:
    with pytest.raises(HwqError) as caught:
        compile_demo(**options)
    check(caught.value.code, caught.value.message, code, ())


def test_a_model_is_what_load_returns() -> None:
    with pytest.raises(HwqError, match=r"model is str; accepted: what hwq\.load returns") as caught:
        face.compile(DEMO, calibration=SAMPLES)  # type: ignore[arg-type]
    assert caught.value.code == "model-type"
