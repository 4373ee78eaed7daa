"""Judge: the accuracy of assignments on a user's samples, run kernel by kernel, each kept in the work directory.

Stands below ``hwq.choose`` and ``hwq.explore``, which ask for many assignments of one study.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwq.assignment import Solution
from hwq.compose import Pool, composed
from hwq.evaluate import Evaluation, float_call
from hwq.evaluate import judge as compare
from hwq.files import write_atomic
from hwq.samples import LABELS, Digest
from hwq.study import Study, inputs_of, roundings_of
from hwq.verify import Accuracy
from hwq.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """One study's assignments held against float. made_from: what accuracies follow from beside the assignment.

    A user's function may have changed since, so its scores are not kept: ``made_from`` is then None.
    """

    study: Study
    work: Work
    pool: Pool
    evaluation: Evaluation
    made_from: tuple[Any, ...] | None


def open_judge(study: Study, work: Work, pool: Pool, evaluation: Evaluation) -> Judge:
    """Ready to judge assignments of ``study``, whatever its scores are."""
    made_from = None
    if evaluation.function is None:
        seen = Digest()
        seen.add(evaluation.inputs)
        if evaluation.labels is not None:
            seen.add({LABELS: evaluation.labels})
        made_from = (
            study.model.fingerprint,
            study.kernels_here.code,
            seen.hex(),
            study.qparams,
            study.means,
            study.smoothing,
        )
    return Judge(study=study, work=work, pool=pool, evaluation=evaluation, made_from=made_from)


def accuracy_of(judge: Judge, solution: Solution) -> Accuracy:
    """How the outputs of the assignment compare with float's: run, or found by an earlier call on the same samples."""
    if judge.made_from is None:
        return _run(judge, solution)
    weights = roundings_of(judge.study.roundings, solution.schemes)
    path = judge.work.file("accuracy", ".json", *judge.made_from, solution.schemes, weights)
    known = _load(path)
    if known is None:
        known = _run(judge, solution)
        write_atomic(path, json.dumps(asdict(known)).encode())
    return known


def _run(judge: Judge, solution: Solution) -> Accuracy:
    runner = composed(judge.pool, judge.study.program_here(solution.schemes))
    return compare(judge.evaluation, float_call(runner, inputs_of(judge.study.graph)))


def _load(path: Path) -> Accuracy | None:
    """What was kept; None if nothing was, or it is damaged."""
    try:
        row = json.loads(path.read_bytes())
        changes = row["changes"] if row["changes"] is None else tuple(map(int, row["changes"]))
        return Accuracy(**{**row, "sqnr_db": tuple(map(float, row["sqnr_db"])), "changes": changes})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("%s is damaged (%r): the assignment is run again", path, error)
        return None
