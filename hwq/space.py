"""The search space of a kernel: the templates that can make it, and what their schedules leave open.

A point of it is a *decision*, a line of JSON: template, variant, and the values of the sampling instructions. It means
the same kernel wherever it is read (``hwq.schedule.kernel_for``), and another version of the template refuses it.

``propose`` says what to try next, from nothing but what has been tried. A variant is a kernel of its own, with its own
packing of weights, so there is no one trace for MetaSchedule's evolutionary search to evolve: the first are each
family's best by its model, with each of its options; then come variants in the order in which the models rank them,
corrected by what their families' fastest took, in turns with mutations of the fastest, by MetaSchedule's own mutator of
tile sizes, on the traces of their schedules. A mutated trace is not replayed: its values are given to the schedule's
Python, where what follows from a size follows from the new one. (MetaSchedule's EvolutionarySearch does not take these
functions at all: they have scalar parameters, which its ``ArgInfo`` refuses.)
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm.s_tir.meta_schedule import _ffi_api as meta_schedule
from tvm.s_tir.meta_schedule.mutator import MutateTileSize

from hwq.compile_kernel import object_path
from hwq.errors import HwqError
from hwq.schedule import template_named, templates
from hwq.schedules.template import DEFAULT, Choice, Decision, Template, read_decision
from hwq.target import Target
from hwq.workload import Kernel, Workload

# The fastest decisions, whose mutations are tried, and how much slower than the fastest they may be; and how many
# mutations are drawn for one that is new.
PARENTS, NEAR, DRAWS = 3, 1.2, 24
_SEEDS = 2**31 - 1


def propose(
    workload: Workload, target: Target, tried: Mapping[str, float], count: int, seed: int, func: Any = None
) -> list[tuple[str, Kernel]]:
    """The next ``count`` decisions to try, with their kernels; fewer, at last none, where the space is exhausted.

    tried: decision -> seconds of a call, inf where it was refused; the default's is optional (``default_decision``).
    What is proposed has code that neither the default, nor what was tried, nor another of them has. The same arguments
    give the same answer.
    """
    space = _space(workload, target)
    if space is None or count < 1:
        return []
    codes = {space.default.code, *(made.code for text in tried if (made := space.of(text)))}
    texts = {*tried, space.default.text}
    heads, variants = _heads(space), _variants(space, tried)
    mutations = _mutations(space, tried, _chance(workload, tried, seed))
    proposed: list[tuple[str, Kernel]] = []
    while len(proposed) < count:
        turns = (variants, mutations) if (len(tried) + len(proposed)) % 2 else (mutations, variants)
        new = next((text for text in itertools.chain(heads, *turns) if text not in texts), None)
        if new is None:
            break
        texts.add(new)
        made = space.of(new)
        if made is not None and made.code not in codes:
            codes.add(made.code)
            proposed.append((new, made.kernel))
    return proposed


def default_decision(workload: Workload, target: Target) -> str | None:
    """The decision that is the default, or None where a workload has no search space."""
    space = _space(workload, target)
    return None if space is None else space.default.text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    """A decision, the trace of its schedule, its kernel, and a hash of the kernel's code."""

    decision: Decision
    trace: Any
    kernel: Kernel
    code: str

    @property
    def text(self) -> str:
        return self.decision.text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Space:
    """The templates of a workload, the default first."""

    workload: Workload
    target: Target
    templates: tuple[Template, ...]

    def plain(self, template: Template) -> _Made:
        """A template with its defaults."""
        return _made(self.workload, self.target, template.name, template.variant, None)

    @property
    def default(self) -> _Made:
        return self.plain(self.templates[0])

    def of(self, text: str) -> _Made | None:
        """What a decision makes; None for one that is of no template of this version."""
        try:
            point = read_decision(text)
            return _made(self.workload, self.target, point.template, point.variant, json.dumps(point.values))
        except HwqError:
            return None


def _space(workload: Workload, target: Target) -> _Space | None:
    found = () if workload.op == "float" else templates(workload, target)
    return _Space(workload=workload, target=target, templates=found) if found else None


@functools.lru_cache(maxsize=512)
def _made(workload: Workload, target: Target, name: str, variant: str, values: str | None) -> _Made:
    """Raises HwqError "decision-invalid"."""
    decision = Decision(template=name, variant=variant, values=() if values is None else tuple(json.loads(values)))
    template = template_named(workload, target, decision)
    kernel, trace = template.made(DEFAULT if values is None else Choice(values=decision.values))
    code = object_path(kernel, target, Path()).stem
    return _Made(decision=replace(decision, values=_values(trace)), trace=trace, kernel=kernel, code=code)


def _heads(space: _Space) -> Iterator[str]:
    """Of each family the template that it expects most of, with its defaults, and with each of its options."""
    for name in dict.fromkeys(template.name for template in space.templates):
        made = space.plain(next(each for each in space.templates if each.name == name))
        yield made.text
        for number, inst in enumerate(_samples(made.trace)):
            for place in range(_options(inst)):
                values = made.decision.values
                yield replace(made.decision, values=(*values[:number], place, *values[number + 1 :])).text


def _variants(space: _Space, tried: Mapping[str, float]) -> Iterator[str]:
    """The templates that were not tried yet, by what their models expect, as shares of the seconds of their families'
    fastest decisions; with the options of those, else with their defaults.
    """
    fastest: dict[str, tuple[float, Decision]] = {}
    used = set()
    for text, seconds in sorted(tried.items()):
        point = _read(text)
        if point is not None:
            used.add((point.template, point.variant))
            if math.isfinite(seconds) and (point.template not in fastest or seconds < fastest[point.template][0]):
                fastest[point.template] = seconds, point
    least = min((seconds for seconds, _ in fastest.values()), default=1.0)
    share = {name: seconds / least for name, (seconds, _) in fastest.items()}
    for template in sorted(space.templates, key=lambda each: each.cycles * share.get(each.name, 1.0)):
        if (template.name, template.variant) not in used:
            point = space.plain(template).decision
            best = fastest[template.name][1].values if template.name in fastest else ()
            if len(best) == len(point.values):
                point = replace(point, values=tuple(map(_option, point.values, best)))
            yield point.text


def _option(default: Any, best: Any) -> Any:
    """An option as in the ``best``; a size as in the ``default``."""
    return best if type(default) is type(best) is int else default


def _mutations(space: _Space, tried: Mapping[str, float], chance: random.Random) -> Iterator[str]:
    """Mutations of the fastest decisions, until no new one is drawn any more."""
    known = sorted((seconds, text) for text, seconds in tried.items() if math.isfinite(seconds))
    near = [text for seconds, text in known if seconds <= NEAR * known[0][0]][:PARENTS]
    parents = [made for text in near if (made := space.of(text))]
    if space.default.text not in tried:
        parents.append(space.default)
    parents = [made for made in parents if made.decision.values]
    mutator = MutateTileSize()
    seen, misses = set(), 0
    while parents and misses < DRAWS * len(parents):
        parent = chance.choice(parents)
        trace = _mutated(parent.trace, mutator, chance)
        text = "" if trace is None else replace(parent.decision, values=_values(trace)).text
        misses += 1
        if text and text not in seen:
            misses = 0
            seen.add(text)
            yield text


def _mutated(trace: Any, mutator: Any, chance: random.Random) -> Any:
    """The trace with one of its decisions changed, or None where that one cannot be."""
    inst = chance.choice(_samples(trace))
    options = _options(inst)
    if not options:
        return meta_schedule.MutatorApply(mutator, trace, chance.randrange(1, _SEEDS))
    place = (int(trace.get_decision(inst)) + chance.randrange(1, max(2, options))) % options
    return trace.with_decision(inst, place, remove_postproc=False)


def _samples(trace: Any) -> list[Any]:
    """The sampling instructions of a trace."""
    return [inst for inst in trace.insts if trace.get_decision(inst) is not None]


def _options(inst: Any) -> int:
    """How many options a sampling instruction picks from; 0 for one that cuts a loop."""
    return len(inst.attrs[0]) if inst.kind.name == "SampleCategorical" else 0


def _values(trace: Any) -> tuple[Any, ...]:
    """The values of a trace's sampling instructions."""
    found = [trace.get_decision(inst) for inst in _samples(trace)]
    return tuple([int(size) for size in one] if hasattr(one, "__len__") else int(one) for one in found)


def _read(text: str) -> Decision | None:
    try:
        return read_decision(text)
    except HwqError:
        return None


def _chance(workload: Workload, tried: Mapping[str, float], seed: int) -> random.Random:
    """Chances that depend on the workload, on what was tried (not on its order or its times), and on ``seed``."""
    return random.Random(hashlib.sha256("\n".join([str(seed), workload.key, *sorted(tried)]).encode()).digest())
