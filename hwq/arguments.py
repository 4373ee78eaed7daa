"""What callers of compile, plan and build give, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hwq.device import resolved
from hwq.errors import HwqError
from hwq.graph import Graph
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
    """Raises HwqError "trials-invalid" for what is no number of trials."""
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 0:
        raise HwqError("trials-invalid", f"trials is {trials!r}; accepted: a whole number of at least 0")


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


def check_drop(graph: Graph, budget: Budget, calibration: Any, evaluate: Any) -> None:
    """Raises HwqError "evaluate-missing" for a budget of drop that nothing can be held against: there are no samples,
    or none but of calibration, where the first output is of another shape than one row of classes for each sample.
    """
    if budget.drop is None or evaluate is not None:
        return
    if calibration is None:
        message = "a budget of drop needs samples to hold it against; accepted: evaluate, or calibration samples"
        raise HwqError("evaluate-missing", message)
    given, shape = graph.shapes[graph.inputs[0]], graph.shapes[graph.outputs[0]]
    if len(shape) != 2 or shape[1] < 2 or shape[0] != max(given[:1], default=1):
        message = "a budget of drop needs labels or classes; accepted: evaluate=(inputs, labels), or a function"
        raise HwqError("evaluate-missing", message)


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


# Operators of networks whose activations are rows, one for each token, of very different sizes.
ROW_OPS = ("attention", "layer_norm", "rms_norm")


def schemes_of_network(graph: Graph, asked: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
    """Of schemes that nobody named those worth trying on a network: float tensors around rounded weights are for
    networks with norms of rows, as transformers have; behind convolutions one range for a tensor serves.
    """
    if any(layer.op in ROW_OPS for layer in graph.layers):
        return asked
    return tuple(scheme for scheme in asked if scheme.domain == "int8" or scheme.weight is None)


def machine_to_build(target: Target | str | Path) -> Target:
    """The target, if code for it can be built; where it is a board's, the board is asked what it is.

    Raises HwqError "target-no-build", and as ``hwq.device.resolved`` where the board does not answer.
    """
    machine = Target.load(target)
    machine.require_builds()
    return resolved(machine)


def can_time(machine: Target) -> bool:
    """Whether there is a machine that runs code for the target and whose times mean something: this one, or a board."""
    return not machine.missing_flags() if machine.device == "local" else not machine.emulated


def check_measure(measure: Any, machine: Target) -> bool:
    """Whether kernels are to be timed; None is where they can be.

    Raises HwqError "target-not-here" where they are to be, and cannot.
    """
    if measure and not can_time(machine):
        missing = ", ".join(machine.missing_flags())
        here = f"this CPU lacks {missing}" if machine.device == "local" else f"{machine.device} is an emulator"
        raise HwqError(
            "target-not-here",
            f"measure is asked for, but {here}, so kernels of {machine.name} have no times; accepted: no measure, or a "
            "board that has it (--device)",
        )
    return can_time(machine) if measure is None else bool(measure)


def machine_of_plan(plan: Plan) -> Target:
    """The machine that ``plan`` is for.

    Raises as ``machine_to_build``, and HwqError "target-unknown" for one of a user's own file.
    """
    if plan.target.endswith(FROM_FILE):
        name = plan.target.removesuffix(FROM_FILE)
        raise HwqError(
            "target-unknown",
            f"the plan is for target {name!r} of a file of its own, and holds only its name; accepted: that file given "
            "again, as target= or --target",
        )
    return machine_to_build(plan.target)
