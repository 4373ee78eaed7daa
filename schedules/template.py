"""Templates: the ways in which a family can compute one workload, and who decides what their schedules leave open.

A *variant* is decided before there is a schedule (a register tile, an algorithm): each has its own function and packing
of weights. What is left are the schedule's sampling instructions, in their order. ``apply`` of a family takes its first
template with the defaults; ``hwq.space`` searches the others. Every point computes the same, or cannot be made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule

from hwq.errors import HwqError
from hwq.workload import Kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who decides the sampling instructions of a schedule: their defaults; its seed, if ``sampled``; or ``values``, one
    for each in order: [outer, inner] of a loop that is cut, the place of an option that is picked.
    """

    sampled: bool = False
    values: tuple[Any, ...] | None = None

    def cut(self, sch: Schedule, loop: Any, inner: int, most: int) -> list[Any]:
        """``loop`` in two, of which the inner has ``inner`` turns by default, and ``most`` at most.

        Raises HwqError "decision-invalid" for a value that does not cut it so.
        """
        return list(sch.split(loop, self.sizes(sch, loop, inner, most)))

    def sizes(self, sch: Schedule, loop: Any, inner: int, most: int) -> list[Any]:
        """What ``cut`` would cut it into; raises as it does."""
        extent = int(sch.get(loop).extent)
        decision: list[int] | None = None if self.sampled else [extent // inner, inner]
        if self.values is not None:
            decision = self._value(sch)
            pair = isinstance(decision, list) and len(decision) == 2 and all(type(size) is int for size in decision)
            if not pair or min(decision) < 1 or decision[0] * decision[1] != extent or decision[1] > most:
                raise _invalid(decision, f"two whole numbers whose product is {extent}, the second {most} at most")
        return list(sch.sample_perfect_tile(loop, 2, max_innermost_factor=most, decision=decision))

    def pick(self, sch: Schedule, options: Sequence[int], default: int) -> int:
        """One of ``options``. Raises HwqError "decision-invalid" for a value that is no place among them."""
        place: int | None = None if self.sampled else list(options).index(default)
        if self.values is not None:
            place = self._value(sch)
            if type(place) is not int or not 0 <= place < len(options):
                raise _invalid(place, f"a place among {len(options)} options")
        chances = [1.0 / len(options)] * len(options)
        return int(sch.get(sch.sample_categorical(list(options), chances, decision=place)))

    def _value(self, sch: Schedule) -> Any:
        assert self.values is not None
        number = len(sch.trace.decisions)
        if number >= len(self.values):
            raise _invalid(list(self.values), "a value for each sampling instruction")
        return self.values[number]


DEFAULT = Choice()


def chosen(seed: int | None) -> Choice:
    """The defaults, or samples where there is a ``seed``."""
    return Choice(sampled=seed is not None)


def _invalid(value: Any, accepted: str) -> HwqError:
    return HwqError("decision-invalid", f"a decision has the value {value!r}; accepted: {accepted}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A variant in work: its unscheduled function, what schedules it, and what makes a kernel of the outcome."""

    func: Any
    schedule: Callable[[Schedule, Choice], None]
    finish: Callable[[Any], Kernel]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Template:
    """One variant. name: the family's ("cpu/conv2d:9"). variant: a text that tells it from the family's others.

    cycles: what the family's model expects it to take, as a share of what it expects of its best. start: makes the
    function, which takes a hundredth of a second.
    """

    name: str
    variant: str
    cycles: float
    start: Callable[[], Draft]

    def kernel(self, seed: int | None = None) -> Kernel:
        """The kernel with the default decisions, or with samples of ``seed``."""
        return self.made(chosen(seed), seed)[0]

    def made(self, choice: Choice, seed: int | None = None) -> tuple[Kernel, Any]:
        """The kernel and the trace of its schedule. Raises HwqError "decision-invalid" as ``Choice`` does."""
        draft = self.start()
        sch = Schedule(draft.func, seed=seed, debug_mask="none")
        try:
            draft.schedule(sch, choice)
            kernel = draft.finish(sch.mod["main"])
        except HwqError:
            raise
        except Exception as error:  # TVM raises many kinds
            if choice.values is None:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise _invalid(list(choice.values), f"values that {self.name} can schedule ({reason})") from error
        if choice.values is not None and len(sch.trace.decisions) != len(choice.values):
            raise _invalid(list(choice.values), f"{len(sch.trace.decisions)} values")
        return kernel, sch.trace


def first(found: Any, seed: int | None) -> Kernel | None:
    """The kernel of the first of some templates, or None where there is none."""
    template = next(iter(found), None)
    return None if template is None else template.kernel(seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A point of a workload's space: a template's name and variant, and the values of its sampling instructions."""

    template: str
    variant: str
    values: tuple[Any, ...]

    @property
    def text(self) -> str:
        """As JSON, one line, always the same for equal decisions."""
        return json.dumps([self.template, self.variant, list(self.values)], separators=(",", ":"))


def read_decision(text: str) -> Decision:
    """The decision of ``Decision.text``. Raises HwqError "decision-invalid"."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, list) or [type(part) for part in found] != [str, str, list]:
        accepted = "JSON of a template's name, its variant, and a list of values"
        raise HwqError("decision-invalid", f"a decision is {text!r:.200}; accepted: {accepted}")
    template, variant, values = found
    return Decision(template=template, variant=variant, values=tuple(values))
