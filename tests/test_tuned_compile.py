"""What tuning decided is used by compiles, and ``trials=`` tunes within one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_study import CALIBRATION, demo_model, demo_pictures, demo_study, demo_work

from hwq import compiler, store, study
from hwq.choose import Choice, uniforms
from hwq.compile_kernel import object_path
from hwq.compiler import compile
from hwq.deliver import deliver, plan_of
from hwq.demo import load_demo
from hwq.errors import HwqError
from hwq.measure import home_of_weights
from hwq.plan import Plan
from hwq.progress import Callback, silent
from hwq.schedule import kernel_for
from hwq.space import propose
from hwq.store import Decision, key_of, put, tool_versions
from hwq.study import priced_again, study_of_plan
from hwq.trial import Outcome
from hwq.tune import Tuned, tune
from hwq.workload import Workload

PICTURES = demo_pictures()[0][:5]
GIVEN: dict[str, Any] = {"calibration": load_demo()[1][:CALIBRATION], "schemes": ["w8a8"], "threads": 1}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own."""
    path = tmp_path / "records.sqlite"
    for module in (study, compiler):
        monkeypatch.setattr(module, "default_store_path", lambda: path)
    return path


def int8_plan() -> Plan:
    found = demo_study()
    return plan_of(found, Choice(solution=uniforms(found)["w8a8"]))


def decided(path: Path) -> Workload:
    """A convolution of the demo network in int8 for which ``path`` has a decision now."""
    found = demo_study()
    program = found.program(int8_plan().schemes)
    for workload in (step.workload for step in program.steps if step.workload is not None):
        candidates = propose(workload, found.target, {}, 1, 0)
        if workload.op == "conv2d" and candidates:
            home = home_of_weights(found.footprints[workload.scheme], found.target)
            schedule = f"{kernel_for(workload, found.target).schedule}@{home}"
            text, kernel = candidates[0]
            row = Decision(
                key=key_of(workload, schedule, found.target, tool_versions()),
                decision=text,
                code=object_path(kernel, found.target, path).stem[:12],
                median_s=1.0,
                default_s=2.0,
                measured_at=1.0,
            )
            put(path, row)
            return workload
    pytest.fail("no convolution has a choice")


def test_the_next_compile_takes_what_was_decided_and_gives_the_same_bits(path: Path) -> None:
    before = demo_study()
    workload = decided(path)
    after = priced_again(before, demo_work(), False, silent)
    changed = [one for one in before.kernels.kernels if after.kernels.name_of(one) != before.kernels.name_of(one)]
    assert changed == [workload]
    assert after.kernels_here is before.kernels_here, "samples run on the defaults"
    plan = int8_plan()
    artifacts = [deliver(one, demo_work(), plan, None) for one in (before, after)]
    np.testing.assert_array_equal(*(one(PICTURES) for one in artifacts))
    assert artifacts[0].library.code != artifacts[1].library.code


def test_a_given_plan_is_built_with_what_was_decided(path: Path) -> None:
    plan = int8_plan()
    workload = decided(path)
    found = study_of_plan(demo_model(), demo_study().target, demo_work(), plan, 1, lambda done, total: None)
    assert found.kernels.name_of(workload) != demo_study().kernels.name_of(workload)


class Seen:
    """Stages that remember their names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callback]:
        self.names.append(name)
        yield lambda done, total: None


def test_trials_tune_the_kernels_of_the_plan_and_price_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a timer for which every candidate takes half of what the default does."""
    default = compile(demo_model(), **GIVEN)
    seen: list[tuple[Any, ...]] = []

    def half(trials: Any, *_: Any, **__: Any) -> list[Outcome]:
        times = [0.5e-6 if trial.decision else 1e-6 for trial in trials]
        return [Outcome(seconds=(seconds,) * 9, default_s=(1e-6,) * 9) for seconds in times]

    def quick(*given: Any, **options: Any) -> Tuned:
        seen.append((given, options))
        return tune(*given, **{**options, "try_them": half})

    monkeypatch.setattr(compiler, "tune", quick)
    stages = Seen()
    artifact = compile(demo_model(), trials=8, seed=3, progress=stages, **GIVEN)
    ((tasks, target, _, store_path), options) = seen[0]
    assert (store_path, options["trials"], options["seed"], options["threads"]) == (path, 8, 3, 1)
    assert options["devices"] == (target.device,)
    assert {task.workload.scheme for task in tasks if task.workload.op == "conv2d"} == {"w8a8"}
    assert stages.names.index("tune") < stages.names.index("compile tuned") < stages.names.index("build")
    decisions = store.decisions(path, target, tool_versions())
    assert decisions
    assert artifact.library.code != default.library.code
    np.testing.assert_array_equal(artifact(PICTURES), default(PICTURES))
    sources = {row["price_source"] for row in artifact.report["layers"]}
    assert sources == {"measured"}
    again = compile(demo_model(), **GIVEN)
    assert again.library.code == artifact.library.code, "later compiles need no trials"


def test_trials_without_a_machine_to_time_on_are_refused() -> None:
    with pytest.raises(HwqError, match="trials is 5, but no kernel is to be timed") as caught:
        compile(demo_model(), trials=5, measure=False, **GIVEN)
    assert caught.value.code == "trials-invalid"
