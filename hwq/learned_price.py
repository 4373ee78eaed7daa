"""Learned price: what a kernel takes that was never measured, from those that were, with an interval that holds.

Boosted trees predict log(measured / base) from ``price_features``; others predict how far off that will be. The
interval is conformal: residuals of cross-validation, in units of that, give the quantiles (Lei and others,
"Distribution-free predictive inference for regression", 2018). Records of one layer stay in one fold, whatever their
scheme, so that no kernel is judged by its near-duplicates.

``shipped`` is trained on this project's measurements of one machine. Where a machine has records of its own,
``refined`` adds trees that are trained on those alone, on top of it; no other machine's records enter. Elsewhere, and
for kinds of kernels that the machine's own records have none of, the shipped trees know of a machine only what its
target file says, and the interval is as wide as the roofline's. They say nothing of a CPU of another architecture: its
records teach from nothing, and price only their own kinds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwq import cost
from hwq.boosting import Trees, train
from hwq.files import write_atomic
from hwq.graph import ANCHORS
from hwq.price_features import FEATURES, OPS, describe, shape_of, workload_of
from hwq.scheme import SCHEMES, Cost
from hwq.store import Record, everything, tool_versions
from hwq.target import Target
from hwq.workload import Workload

log = logging.getLogger(__name__)
SHIPPED_AT = Path(__file__).parent / "data" / "price.json"
SHIPPED_OF = "x86_64"
# Raised when features or training change: models of another version are made again.
VERSION = 4
COVERED = 0.9
FOLDS = 10
ROUNDS, OPTIONS = 240, {"max_depth": 5, "eta": 0.06, "subsample": 0.7, "colsample_bytree": 0.6, "min_child_weight": 2}
# The trees for how far off a price is, and the least that they may say: flat, since a residual is mostly noise.
SPREAD_ROUNDS, SPREAD_OPTIONS = 100, {"max_depth": 4, "eta": 0.1, "subsample": 0.7, "min_child_weight": 5}
LEAST_SPREAD = 0.01
# On top of the shipped trees; fewer and flatter, for a machine's own records are few at first.
OWN_ROUNDS, OWN_OPTIONS = 100, {"max_depth": 3, "eta": 0.1, "subsample": 0.7, "min_child_weight": 5}
# A machine's own records teach from this number on: below it, 5% on each side are less than two of them.
LEAST_RECORDS = 40
# They teach anew when there are so many times as many as they were.
GROWTH = 1.25

Ends = tuple[float, float]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One measurement to learn from. group: ``layer_digest``, which near-duplicates share."""

    base_s: float
    features: tuple[float, ...]
    measured_s: float
    group: str
    kind: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """A trained price. centre: log(measured / base). spread: how far off that is. ends: the conformal quantiles of the
    residuals in units of spread, of kernels on one thread and on several. kinds: (op, domain) that it has seen; it
    prices no others.

    fingerprint: the machine whose records set the interval. own: of kinds, those of which it had records. seen: digests
    of their layers. summary: where it is from.
    """

    centre: Trees
    spread: Trees
    ends: tuple[Ends, Ends]
    kinds: frozenset[tuple[str, str]]
    fingerprint: str
    own: frozenset[tuple[str, str]]
    seen: frozenset[str] = frozenset()
    summary: Mapping[str, Any] = field(default_factory=dict)

    def price(self, workload: Workload, schedule: str, home: str, target: Target) -> Cost | None:
        """The price of ``workload`` as made by ``schedule``, its weights in ``home``; None for a kind never seen. Of a
        dynamic layer no less than of its static twin: of that there are more records."""
        found = self._price(workload, schedule, home, target)
        if found is None or not (SCHEMES[workload.scheme].dynamic and workload.op in ANCHORS):
            return found
        twin = self._price(cost.static_twin(workload), schedule, home, target)
        assert twin is not None, "of the same kind"
        low, high = (max(each) for each in zip(found.interval_s, twin.interval_s, strict=True))
        return replace(found, latency_s=max(found.latency_s, twin.latency_s), interval_s=(low, high))

    def _price(self, workload: Workload, schedule: str, home: str, target: Target) -> Cost | None:
        kind = kind_of(workload)
        if kind not in self.kinds:
            return None
        found = describe(workload, schedule, home, target)
        given = np.array([found.features], np.float32)
        centre = float(self.centre.predict(given)[0])
        spread = float(spreads(self.spread, given)[0])
        latency_s = found.base_s * math.exp(centre)
        ends = self.ends[threaded(found.features)]
        low, high = (found.base_s * math.exp(centre + side * spread) for side in ends)
        if target.fingerprint != self.fingerprint or kind not in self.own:
            low, high = min(low, latency_s / cost.FASTER), max(high, latency_s * cost.SLOWER)
        return Cost(
            latency_s=latency_s,
            weight_bytes=cost.weight_bytes(workload),
            source="learned",
            interval_s=(min(low, latency_s), max(high, latency_s)),
        )


def kind_of(workload: Workload) -> tuple[str, str]:
    """(op, domain): what must have been seen for a price to be learned. A dynamic layer is of the kind of integer ones
    that write float, whose products and stores are its own; weights that become floats are of a kind by their type."""
    scheme = SCHEMES[workload.scheme]
    if scheme.integer and workload.op in ANCHORS:
        return workload.op, "int8"
    own = scheme.weight is not None and (workload.op == "gather" or not scheme.integer)
    return workload.op, scheme.weight_type if own else scheme.domain


def rows_of(records: Iterable[Record], target: Target, tools: str) -> tuple[Row, ...]:
    """What the ``records`` teach about ``target``: those of its fingerprint and these tools, and no others.

    Of several of one kernel (older code, say) the latest counts. In the order of their keys.
    """
    latest: dict[tuple[str, str], Record] = {}
    for record in records:
        if record.key.target != target.fingerprint or record.key.tools != tools:
            continue
        place = (record.key.workload, _home(record.key.schedule))
        if place not in latest or latest[place].measured_at < record.measured_at:
            latest[place] = record
    rows = []
    for (key, home), record in sorted(latest.items(), key=lambda item: item[0]):
        try:
            workload = workload_of(key)
        except (ValueError, KeyError, TypeError) as error:  # of another version of hwq
            log.debug("a record cannot be read (%r): nothing is learned of it", error)
            continue
        if workload.op not in OPS:
            continue
        found = describe(workload, record.key.schedule, home, target)
        rows.append(
            Row(
                base_s=found.base_s,
                features=found.features,
                measured_s=record.median_s,
                group=layer_digest(workload),
                kind=kind_of(workload),
            )
        )
    return tuple(rows)


def layer_digest(workload: Workload) -> str:
    """8 hex digits of the layer's shape (``shape_of``): what a model remembers of a record that it was trained on."""
    return hashlib.sha256(shape_of(workload).encode()).hexdigest()[:8]


def _home(schedule: str) -> str:
    return schedule.rsplit("@", 1)[1] if "@" in schedule else "l2"


# Training


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Validation:
    """Each row's price by trees that never saw its group, and what that says. log_ratio: log(measured / predicted).

    covered: whether the interval held it, by quantiles of the other folds.
    """

    log_ratio: Vector
    covered: npt.NDArray[np.bool_]
    ends: tuple[Ends, Ends]
    spread: Trees

    @property
    def median_error(self) -> float:
        """The median of |predicted / measured - 1|."""
        return float(np.median(np.abs(np.expm1(-self.log_ratio))))

    @property
    def coverage(self) -> float:
        return float(self.covered.mean())


def folds_of(groups: Sequence[str], count: int = FOLDS) -> npt.NDArray[np.int64]:
    """The fold of each row: by its group's hash, so that it does not depend on what else there is."""
    return np.array([zlib.crc32(group.encode()) % count for group in groups])


def spreads(trees: Trees, features: npt.ArrayLike) -> Vector:
    """How far off a price is expected to be, in logarithms."""
    return np.maximum(trees.predict(features), LEAST_SPREAD)


def validate(rows: Sequence[Row], start: Vector, rounds: int, options: Mapping[str, Any]) -> Validation:
    """Cross-validation of trees on top of ``start``, by groups, and the interval that follows from it."""
    given = np.array([row.features for row in rows], np.float32)
    wanted = np.log([row.measured_s / row.base_s for row in rows])
    folds = folds_of([row.group for row in rows])
    residual, spread = np.zeros(len(rows)), np.ones(len(rows))
    parts = [(folds != fold, folds == fold) for fold in np.unique(folds)]
    for rest, own in parts:
        trees = train(given[rest], wanted[rest], rounds=rounds, options=options, start=start[rest])
        residual[own] = wanted[own] - start[own] - trees.predict(given[own])
    for rest, own in parts:
        spread[own] = spreads(_spread_trees(given[rest], residual[rest]), given[own])
    score, several = residual / spread, np.array([threaded(row.features) for row in rows])
    covered = np.zeros(len(rows), bool)
    for rest, own in parts:
        low, high = np.array(_ends(score[rest], several[rest]))[several[own]].T
        covered[own] = (low <= score[own]) & (score[own] <= high)
    ends = _ends(score, several)
    return Validation(log_ratio=residual, covered=covered, ends=ends, spread=_spread_trees(given, residual))


def threaded(features: Sequence[float]) -> int:
    """1 for a kernel that may run on several threads, whose times vary more, else 0."""
    return int(features[FEATURES.index("parallel")] > 0)


def _ends(score: Vector, several: npt.NDArray[np.int64]) -> tuple[Ends, Ends]:
    """The quantiles of each of the two classes, if it has ``LEAST_RECORDS``, else of all."""
    one, more = (score[several == kind] if (several == kind).sum() >= LEAST_RECORDS else score for kind in (0, 1))
    return quantiles(one), quantiles(more)


def _spread_trees(given: npt.NDArray[np.float32], residual: Vector) -> Trees:
    # A residual ten times the usual is a disturbed measurement more often than a hard kernel.
    size = np.abs(residual)
    most = 10 * float(np.median(size)) + LEAST_SPREAD
    return train(given, np.minimum(size, most), rounds=SPREAD_ROUNDS, options=SPREAD_OPTIONS)


def quantiles(scores: npt.ArrayLike, covered: float = COVERED) -> Ends:
    """The conformal ends of an interval around 0 that holds ``covered`` of new scores, half of the rest beyond each."""
    ordered = np.sort(np.asarray(scores, np.float64))
    count, beyond = len(ordered), (1 - covered) / 2
    below = math.floor(beyond * (count + 1))
    low = ordered[below - 1] if below >= 1 else ordered[0]
    high = ordered[count - below] if below >= 1 else ordered[-1]
    return min(0.0, float(low)), max(0.0, float(high))


def learn(rows: Sequence[Row], fingerprint: str, summary: Mapping[str, Any]) -> tuple[Learned, Validation]:
    """A price trained on ``rows`` alone, and its cross-validation."""
    return _learn(rows, fingerprint, summary, None, ROUNDS, OPTIONS)


def refined(known: Learned | None, rows: Sequence[Row], fingerprint: str) -> tuple[Learned, Validation] | None:
    """``known`` with trees for this machine, of those ``rows`` that it has not seen; None if they are too few.

    known: None where nothing is known of machines of this architecture; then the trees stand alone.
    """
    seen = known.seen if known is not None and fingerprint == known.fingerprint else frozenset()
    fresh = [row for row in rows if row.group not in seen]
    if len(fresh) < LEAST_RECORDS or len({row.group for row in fresh}) < FOLDS:
        return None
    return _learn(fresh, fingerprint, {"records": len(fresh)}, known, OWN_ROUNDS, OWN_OPTIONS)


def _learn(
    rows: Sequence[Row],
    fingerprint: str,
    summary: Mapping[str, Any],
    known: Learned | None,
    rounds: int,
    options: Mapping[str, Any],
) -> tuple[Learned, Validation]:
    given = np.array([row.features for row in rows], np.float32)
    start = np.zeros(len(rows)) if known is None else known.centre.predict(given)
    found = validate(rows, start, rounds, options)
    wanted = np.log([row.measured_s / row.base_s for row in rows])
    trees = train(given, wanted, rounds=rounds, options=options, start=start)
    kinds = frozenset(row.kind for row in rows)
    figures = {"median_error": round(found.median_error, 4), "coverage": round(found.coverage, 4)}
    model = Learned(
        centre=trees if known is None else known.centre + trees,
        spread=found.spread,
        ends=found.ends,
        kinds=kinds if known is None else kinds | known.kinds,
        fingerprint=fingerprint,
        own=kinds if known is None or known.fingerprint != fingerprint else kinds | known.own,
        seen=frozenset(row.group for row in rows),
        summary=dict(summary) | figures,
    )
    return model, found


# Files


def to_text(model: Learned) -> str:
    """JSON, a line for each tree. ``from_text`` reads it back."""
    plain = {
        "version": VERSION,
        "features": list(FEATURES),
        "ends": [list(ends) for ends in model.ends],
        "kinds": sorted(map(list, model.kinds)),
        "own": sorted(map(list, model.own)),
        "fingerprint": model.fingerprint,
        "summary": dict(model.summary),
        "seen": "".join(sorted(model.seen)),
    }
    lines = [f'"{key}": {json.dumps(value)}' for key, value in plain.items()]
    for name, trees in (("centre", model.centre), ("spread", model.spread)):
        rows = ",\n".join(json.dumps(tree, separators=(",", ":")) for tree in trees.to_list())
        lines.append(f'"{name}": [\n{rows}]')
    return "{" + ",\n".join(lines) + "}\n"


def from_text(text: str) -> Learned:
    """The model that ``to_text`` wrote. Raises ValueError for other texts, and other versions."""
    try:
        plain = json.loads(text)
        if plain["version"] != VERSION or plain["features"] != list(FEATURES):
            raise ValueError(f"version {plain['version']}; accepted: {VERSION}")
        seen, (one, more) = plain["seen"], plain["ends"]
        return Learned(
            centre=Trees.from_list(plain["centre"]),
            spread=Trees.from_list(plain["spread"]),
            ends=((float(one[0]), float(one[1])), (float(more[0]), float(more[1]))),
            kinds=_kinds(plain["kinds"]),
            fingerprint=str(plain["fingerprint"]),
            own=_kinds(plain["own"]),
            seen=frozenset(seen[i : i + 8] for i in range(0, len(seen), 8)),
            summary=plain["summary"],
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"a learned price cannot be read: {error}") from error


def _kinds(pairs: Iterable[Sequence[str]]) -> frozenset[tuple[str, str]]:
    return frozenset((str(op), str(domain)) for op, domain in pairs)


def shipped() -> Learned:
    """The model that comes with hwq."""
    return from_text(SHIPPED_AT.read_text())


def usable_for(target: Target, cache: Path) -> Learned | None:
    """``known_for``; None where that says nothing of the target: the shipped model has only seen x86."""
    found = known_for(target, cache)
    return found if target.architecture == SHIPPED_OF or found.fingerprint == target.fingerprint else None


def known_for(target: Target, cache: Path) -> Learned:
    """What is learned of ``target``: what ``refresh`` kept in the folder ``cache``, else the shipped model."""
    try:
        return from_text(_kept_at(target, cache).read_text())
    except FileNotFoundError:
        return shipped()
    except (OSError, ValueError) as error:
        log.debug("the learned price of %s cannot be read (%s): the shipped one serves", target.name, error)
        return shipped()


def refresh(target: Target, store: Path, cache: Path) -> Learned | None:
    """Learn from the store's records of ``target`` and keep that in ``cache``, where there are ``GROWTH`` times as many
    as before; None where nothing was to be done. Raises HwqError as ``store.everything``, and "save-failed".
    """
    rows = rows_of(everything(store), target, tool_versions())
    before = known_for(target, cache)
    if before.fingerprint == target.fingerprint and len(rows) < GROWTH * before.summary.get("of", 0):
        return None
    known = shipped() if target.architecture == SHIPPED_OF else None
    found = refined(known, rows, target.fingerprint)
    if found is None:
        return None
    model = replace(found[0], summary={**found[0].summary, "of": len(rows)})
    path = _kept_at(target, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_text(model).encode())
    return model


def _kept_at(target: Target, cache: Path) -> Path:
    """By the machine, and by what its trees stand on: another shipped model has others."""
    base = hashlib.sha256(SHIPPED_AT.read_bytes()).hexdigest()[:8]
    return cache / "price" / f"{target.fingerprint}-{base}.json"
