"""Verify what was delivered: integer kernels against the NumPy reference, outputs against float, accuracy on labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import numerics, reference
from hwq.errors import HwqError
from hwq.execute import BoundStep, Runner, run, seen, to_device
from hwq.lengths import COUNT, EXTRA, cut_to
from hwq.samples import Batch, count_of
from hwq.scheme import SCHEMES
from hwq.target import Target
from hwq.workload import Workload

Array = npt.NDArray[Any]
Run = Callable[[Any], Any]
# (inputs, labels), or a function of a run callable that returns a score, higher is better
Evaluate = tuple[Any, Any] | Callable[[Run], float]


def is_exact(workload: Workload) -> bool:
    """Whether a kernel's result is certain to the last bit: integers are, and what schemes of integer weights make of
    them in float, up to an activation that is no clamp.
    """
    scheme = SCHEMES[workload.scheme]
    return scheme.domain == "int8" or (scheme.weight is not None and workload.activation.clamps)


def differing_steps(runner: Runner, batch: Batch, target: Target) -> dict[str, int]:
    """For each integer step run on real activations: how many elements differ from the NumPy reference (0 is right)."""
    found: dict[str, int] = {}
    tokens = int(batch[COUNT][0]) if COUNT in batch else None

    def compare(bound: BoundStep, env: Mapping[str, Any]) -> None:
        step = bound.step
        if step.workload is None or not is_exact(step.workload):
            return
        arguments = [env[name].numpy() for name in step.inputs] + list(step.constants)
        expected = reference.evaluate(step.workload, arguments, target.activation_storage)
        expected = cut_to(expected, runner.program.values[step.output][0], tokens)
        found[step.name] = int((seen(runner, env, step.output) != expected).sum())

    run(runner, to_device(batch), watch=compare)
    return found


def require_equal(runner: Runner, batch: Batch, target: Target) -> None:
    """Raises HwqError "kernel-differs" naming the steps whose integers are not the reference's."""
    wrong = {name: count for name, count in differing_steps(runner, batch, target).items() if count}
    if wrong:
        rows = ", ".join(f"{name} ({count} elements)" for name, count in wrong.items())
        raise HwqError("kernel-differs", f"integer kernels differ from the NumPy reference: {rows}; accepted: equality")


def require_same_bits(call: Run, runner: Runner, batch: Batch) -> None:
    """Raises HwqError "kernel-differs" naming the outputs in which ``call`` gives other bits than ``runner`` does."""
    env = run(runner, to_device(batch))
    given = {name: seen(runner, env, name) for name in batch if name not in EXTRA}
    pairs = zip(runner.program.outputs, outputs_of(call, given), strict=True)
    wrong = [name for name, mine in pairs if mine.tobytes() != seen(runner, env, name).tobytes()]
    if wrong:
        raise HwqError(
            "kernel-differs",
            f"the library gives other outputs than its kernels one by one: {', '.join(wrong)}; accepted: the same bits",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """One run compared with float's on the same inputs. drop is float's score minus this one's (a fraction).

    agreement: share of samples of the same class, None where the first output is not (N, classes). score: None without
    labels; then drop is the share of samples whose class changed, which bounds the accuracy lost from above. changes:
    how many samples are wrong that float had right, and the other way round (without labels: changed, 0), if known.
    """

    score: float | None
    float_score: float | None
    drop: float | None
    agreement: float | None
    sqnr_db: tuple[float, ...]
    samples: int
    changes: tuple[int, int] | None = None


def outputs_of(call: Run, inputs: Any) -> tuple[Array, ...]:
    """The call's outputs as a tuple."""
    result = call(inputs)
    return result if isinstance(result, tuple) else (result,)


def top1(logits: Array, labels: Array) -> float:
    """The share of rows of ``logits`` (N, classes) whose largest entry is at ``labels`` (N,)."""
    return float((logits.reshape(len(logits), -1).argmax(axis=1) == labels).mean())


def compare(
    call: Run,
    float_outputs: tuple[Array, ...],
    inputs: Mapping[str, Array],
    labels: Array | None,
    score: float | None,
    float_score: float | None,
) -> Accuracy:
    """``call`` on ``inputs`` against ``float_outputs``; the scores are those that a user's function gave, if any."""
    mine = outputs_of(call, inputs)
    count = count_of(inputs)
    classes = mine[0].ndim == 2 and mine[0].shape[0] == count and mine[0].shape[1] > 1
    changed = mine[0].argmax(axis=1) != float_outputs[0].argmax(axis=1) if classes else None
    agreement = None if changed is None else float((~changed).mean())
    changes = None if changed is None or score is not None else (int(changed.sum()), 0)
    if labels is not None:
        score, float_score = top1(mine[0], labels), top1(float_outputs[0], labels)
        right, before = (output.argmax(axis=1) == labels for output in (mine[0], float_outputs[0]))
        changes = int((before & ~right).sum()), int((right & ~before).sum())
    drop = float_score - score if score is not None and float_score is not None else None
    if drop is None and agreement is not None:
        drop = 1.0 - agreement
    return Accuracy(
        score=score,
        float_score=float_score,
        drop=drop,
        agreement=agreement,
        sqnr_db=tuple(numerics.sqnr_db(good, got) for good, got in zip(float_outputs, mine, strict=True)),
        samples=count,
        changes=changes,
    )


def check_labels(inputs: Mapping[str, Array], labels: Any, output: Array) -> npt.NDArray[np.int64]:
    """Labels as int64 (N,), as many as inputs, each a column of the first output (N, classes).

    Raises HwqError "labels-invalid".
    """
    try:
        array = np.asarray(labels)
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise HwqError("labels-invalid", f"evaluate labels are no array ({error}); accepted: integers (N,)") from error
    count = count_of(inputs)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        found = f"{array.dtype} of shape {array.shape}"
        raise HwqError("labels-invalid", f"evaluate labels are {found}; accepted: integers of shape ({count},)")
    if output.ndim != 2 or output.shape[0] != count or output.shape[1] < 2:
        message = (
            f"evaluate gives labels, but the network's first output has shape {output.shape}; accepted: labels for an "
            "output of (N, classes), or a function of a run callable for any other"
        )
        raise HwqError("labels-invalid", message)
    least, most, classes = int(array.min()), int(array.max()), output.shape[1]
    if least < 0 or most >= classes:
        message = f"evaluate labels go from {least} to {most}; accepted: 0 to {classes - 1}, the network's classes"
        raise HwqError("labels-invalid", message)
    return array.astype(np.int64)
