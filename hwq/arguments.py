"""What callers of compile, plan and build give, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hwq.errors import HwqError
from hwq.model import Model
from hwq.plan import Plan
from hwq.scheme import Budget, Scheme, parse_schemes
from hwq.target import FROM_FILE, Target


def check_model(model: Any) -> Model:
    """The model. Raises HwqError "model-type" for anything else."""
    if not isinstance(model, Model):
        raise HwqError("model-type", f"model is {type(model).__name__}; accepted: what hwq.load returns")
    return model


def check_plan(plan: Any) -> Plan:
    """The plan. Raises HwqError "plan-invalid" for anything else."""
    if not isinstance(plan, Plan):
        accepted = "what hwq.plan or hwq.Plan.load returns"
        raise HwqError("plan-invalid", f"plan is {type(plan).__name__}; accepted: {accepted}")
    return plan


def check_threads(threads: Any) -> None:
    """Raises HwqError "threads-invalid" for what is no number of threads, and not None."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise HwqError("threads-invalid", f"threads is {threads!r}; accepted: a whole number of at least 1, or None")


def check_trials(trials: Any) -> None:
    """Raises HwqError "trials-unsupported" for anything but 0."""
    if trials != 0:
        raise HwqError("trials-unsupported", f"trials is {trials!r}; accepted: 0 (auto-scheduling is not there yet)")


def check_seconds(name: str, value: Any) -> None:
    """Raises HwqError "quantity-invalid" for what is no time that can be waited for."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise HwqError("quantity-invalid", f"{name} is {value!r}; accepted: seconds, 0 or more")


def check_budget(budget: Any) -> Budget:
    """The budget, without bounds for None. Raises HwqError "budget-invalid"."""
    if budget is None:
        return Budget()
    if not isinstance(budget, Budget):
        raise HwqError("budget-invalid", f"budget is {budget!r}; accepted: a hwq.Budget, as hwq.Budget(drop=0.005)")
    return budget


def schemes_on(machine: Target, names: Iterable[str] | None) -> tuple[Scheme, ...]:
    """The schemes named; None is all. Raises HwqError "scheme-unknown", and "scheme-not-here" for one it lacks."""
    asked = parse_schemes(names)
    for scheme in asked if names is not None else ():
        if scheme.name not in machine.schemes:
            raise HwqError(
                "scheme-not-here",
                f"scheme {scheme.name!r} is asked for, but {machine.name} has no instruction for it; "
                f"accepted: {', '.join(machine.schemes)}",
            )
    return asked


def machine_here(target: Target | str | Path) -> Target:
    """The target, if code for it can be built and run here. Raises HwqError "target-no-build", "target-not-here"."""
    machine = Target.load(target)
    machine.require_builds()
    missing = machine.missing_flags()
    if missing:
        raise HwqError(
            "target-not-here",
            f"target {machine.name} needs {', '.join(missing)}, which this CPU lacks, and its kernels are calibrated "
            "and measured here; accepted: host, or a target that this CPU can run",
        )
    return machine


def machine_of_plan(plan: Plan) -> Target:
    """The machine that ``plan`` is for. Raises as ``machine_here``, and HwqError "target-unknown" for a user's own."""
    if plan.target.endswith(FROM_FILE):
        name = plan.target.removesuffix(FROM_FILE)
        raise HwqError(
            "target-unknown",
            f"the plan is for target {name!r} of a file of its own, and holds only its name; accepted: that file given "
            "again, as target= or --target",
        )
    return machine_here(plan.target)
