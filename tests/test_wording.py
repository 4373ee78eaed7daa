"""The shell's words for Python's arguments: every row of the table is for a sentence that hwq has."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assign_problems import candidate
from demo_study import demo_model
from onnx_nets import network, node

import hwq
from hwq import wording
from hwq.arguments import check_drop, check_measure, check_seconds, check_trials
from hwq.assign import assign
from hwq.assignment import Limits, Problem
from hwq.decode import check_samples, decoder
from hwq.errors import HwqError
from hwq.model import load, varying
from hwq.scheme import Budget, parse_schemes
from hwq.target import Target
from hwq.verify import check_labels
from hwq.wording import in_options

FREE = network([node("Relu", ["x"], ["y"])], x=("N", 3, "H", 8))
PICTURES = {"image": np.zeros((2, 1, 16, 16), np.float32)}
TINY = Problem(candidates=(candidate("a", "f32", 2.0, weight_bytes=12),), borders=())
DECODER = replace(demo_model(), length=8)


def without_classes() -> Any:
    graph = demo_model().graph
    return replace(graph, shapes={**graph.shapes, graph.outputs[0]: (1, 4, 10)})


# What raises the sentence, and something that the shell says instead of Python's words.
RAISED: tuple[tuple[Callable[[], Any], str], ...] = (
    (lambda: load(FREE), "give the whole shape in --shape x=..., or its lengths, where they vary, in --dynamic x:2=L"),
    (lambda: load(FREE, shapes={"x": (1, 4, 8, 8)}), "--shape of 'x' is (1, 4, 8, 8); accepted by the model: (free, 3"),
    (lambda: load(FREE, shapes={"y": (1, 4, 8, 8)}), "--shape names input 'y'"),
    (lambda: varying(demo_model(), {"image": {1: (1, 5)}}), "accepted: 1, or --shape with 5 there"),
    (lambda: decoder(demo_model(), cache="int9"), "--decoder is 'int9'; accepted: float32, int8"),
    (lambda: check_samples(DECODER, "calibration", []), "--calib is given for 'digits'"),
    (lambda: check_samples(DECODER, "evaluate", []), "accepted: --eval for `hwq plan`, then --decoder and --plan"),
    (lambda: check_drop(without_classes(), Budget(drop=0.1), [], None), "accepted: --eval for an output of (N, cl"),
    (lambda: check_drop(without_classes(), Budget(drop=0.1), None, None), "accepted: --eval, or --calib"),
    (lambda: check_labels(PICTURES, np.zeros(2, int), np.zeros((2, 3, 4))), "labels for an output of (N, classes)"),
    (lambda: check_labels(PICTURES, np.zeros(3, int), np.zeros((2, 3))), "--eval labels are int64 of shape (3,)"),
    (lambda: parse_schemes([]), "--schemes is empty"),
    (lambda: check_trials(-1), "--trials is -1"),
    (lambda: check_measure(True, replace(Target.load("host"), cpu_flags=("none",))), "accepted: --no-measure, or a b"),
    (lambda: check_seconds("sensitivity_s", -1.0), "--sensitivity-time is -1.0"),
    (lambda: Budget(latency_s=0.0), "--max-latency is 0.0 s; accepted: a positive number"),
    (lambda: Budget(weight_bytes=0.0), "--max-size is 0.0 bytes; accepted: a positive number"),
    (lambda: assign(TINY, Limits(weight_bytes=7)), "(--max-size 7 bytes): --max-size 7 bytes is too low by 5"),
    (lambda: assign(TINY, Limits(latency_s=1e-3)), "budget (--max-latency 0.001 s): --max-latency 0.001 s is too low"),
)
# Sentences that take a network to raise: a part of them as it stands in a module, and the shell's.
WRITTEN = (
    ("calibrate", "accepted: samples on which it varies, or schemes=['f32']", "it varies, or --schemes f32"),
    ("study", "cannot be judged here; accepted: no evaluate", "accepted: no --eval"),
    ("study", "accepted: a plan made by hwq.plan with calibration samples", "made by `hwq plan` with --calib"),
    ("compiler", "or can be; accepted: 0, or measure", "accepted: 0, or --measure"),
    ("arguments", "accepted: that file given again, as target= or --target", "again, as --target"),
    ("session", "more, reset(), or hwq.decoder with a greater length", "more"),
    (
        "artifact",
        "a board (device=, --device), or an artifact compiled for this one (target='host')",
        "a board (--device), or an artifact compiled for this one (--target host)",
    ),
)


def raised(call: Callable[[], Any]) -> str:
    with pytest.raises(HwqError) as caught:
        call()
    return caught.value.message


@pytest.mark.parametrize(("call", "said"), RAISED)
def test_the_shell_says_options(call: Callable[[], Any], said: str) -> None:
    message = in_options(raised(call))
    assert said in message
    assert not re.search(r"\b\w+=[\[({]|\bhwq\.|latency_s|weight_bytes|\bNone\b|function", message)


@pytest.mark.parametrize(("module", "sentence", "said"), WRITTEN)
def test_the_shell_says_options_of_sentences_as_they_are_written(module: str, sentence: str, said: str) -> None:
    source = ast.parse((Path(hwq.__file__).parent / f"{module}.py").read_text())
    texts = [node.value for node in ast.walk(source) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert any(sentence in text for text in texts)
    assert in_options(sentence).endswith(said)


def test_every_row_is_for_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [*(raised(call) for call, _ in RAISED), *(sentence for _, sentence, _ in WRITTEN), "points is 2"]
    whole = [in_options(sentence) for sentence in sentences]
    for row in wording.ROWS:
        monkeypatch.setattr(wording, "ROWS", tuple(other for other in wording.ROWS if other is not row))
        assert [in_options(sentence) for sentence in sentences] != whole, row
        monkeypatch.undo()


@pytest.mark.parametrize(
    "sentence",
    ["job file job.toml: net.onnx: shapes['y'] is 7", "job file a.toml: trials is 0", "plan.json: latency_s is 0"],
)
def test_keys_of_files_are_no_options(sentence: str) -> None:
    assert in_options(sentence) == sentence


def test_names_that_look_like_arguments_stay() -> None:
    sentence = "model file 'a--calibration--evaluate, or schemes=['f32'].onnx' does not exist; accepted: a path"
    assert in_options(sentence) == sentence
