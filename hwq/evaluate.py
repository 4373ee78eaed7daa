"""Evaluation: the samples on which a compiled network is held against float, and what float gives on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import samples, verify
from hwq.errors import HwqError
from hwq.execute import Runner, run, seen, to_device
from hwq.samples import Batch, Inputs
from hwq.verify import Accuracy, Run

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Samples with float's outputs on them. source: "evaluate" (the user's), "calibration", or "function".

    labels: classes, where given. function: the user's score of a run, with float's score in ``float_score``; the
    samples are then calibration's.
    """

    inputs: Batch
    float_outputs: tuple[Array, ...]
    labels: npt.NDArray[np.int64] | None = None
    function: Callable[[Run], float] | None = None
    float_score: float | None = None
    source: str = "evaluate"


def float_call(runner: Runner, inputs: Inputs, rows: Mapping[str, int] | None = None) -> Run:
    """The float network as a call like an artifact's: samples in, one array or a tuple out. rows: see ``as_batch``."""

    def once(part: Batch) -> tuple[Array, ...]:
        env = run(runner, to_device(part))
        return tuple(seen(runner, env, name) for name in runner.program.outputs)

    def call(value: Any) -> Any:
        shapes = [runner.program.values[name][0] for name in runner.program.outputs]
        return samples.in_batches(once, value, inputs, shapes=shapes, rows=rows)

    return call


def prepare(
    evaluate: Any,
    kept: tuple[Batch, ...],
    runner: Runner,
    inputs: Inputs,
    rows: Mapping[str, int] | None = None,
) -> Evaluation | None:
    """The evaluation a user asked for; without one, on the ``kept`` calibration samples; None if there are none either.

    evaluate: (inputs, labels), or a function of a run callable that returns a number, higher is better. Raises HwqError
    "evaluate-invalid", "labels-invalid" and those of ``hwq.samples``. rows: see ``hwq.samples.as_batch``.
    """
    reference = float_call(runner, inputs, rows)
    batch: Batch | None = kept[0] if kept else None
    if kept and samples.batch_size(inputs) is not None:
        batch = samples.gathered(kept)
    if evaluate is None or callable(evaluate):
        score = None if evaluate is None else _score(evaluate, reference)
        if batch is None:
            if evaluate is None:
                return None
            batch = {name: np.zeros(shape, dtype) for name, (shape, dtype) in inputs.items()}
        outputs = verify.outputs_of(reference, batch)
        source = "calibration" if evaluate is None else "function"
        return Evaluation(inputs=batch, float_outputs=outputs, function=evaluate, float_score=score, source=source)
    if not (isinstance(evaluate, tuple | list) and len(evaluate) == 2):
        found = type(evaluate).__name__
        message = f"evaluate is {found}; accepted: (inputs, labels), or a function of a run callable"
        raise HwqError("evaluate-invalid", message)
    checked = samples.as_batch(evaluate[0], inputs, "evaluate", rows)
    outputs = verify.outputs_of(reference, checked)
    labels = verify.check_labels(checked, evaluate[1], outputs[0])
    return Evaluation(inputs=checked, float_outputs=outputs, labels=labels)


def _score(function: Callable[[Run], float], call: Run) -> float:
    value = function(call)
    if not isinstance(value, int | float | np.floating) or not np.isfinite(value):
        message = f"the evaluate function returned {value!r}; accepted: a finite number, higher is better"
        raise HwqError("evaluate-invalid", message)
    return float(value)


def judge(evaluation: Evaluation, call: Run) -> Accuracy:
    """``call`` against float on the evaluation's samples."""
    score = None if evaluation.function is None else _score(evaluation.function, call)
    inputs, labels = evaluation.inputs, evaluation.labels
    return verify.compare(call, evaluation.float_outputs, inputs, labels, score, evaluation.float_score)


def summary(accuracy: Accuracy, source: str) -> dict[str, Any]:
    """The figures as a report holds them."""
    return {
        "source": source,
        "samples": accuracy.samples,
        "score": accuracy.score,
        "float_score": accuracy.float_score,
        "drop": accuracy.drop,
        "agreement": accuracy.agreement,
        "sqnr_db": list(accuracy.sqnr_db),
    }
