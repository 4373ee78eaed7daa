"""Side by side: how contenders are timed in turns, what counts of their times, and the tables that come of it.

Contenders take turns, round by round, so that a load on the machine falls on all of them, and every turn begins with
calls that are not counted and ends with a pause in which worker threads that spin fall asleep. What counts is the
median of the faster half of a contender's calls: whatever else runs here only adds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

WARM_UP = 3
PAUSE_S = 0.05
OURS = "hwq"
FIRST, SECOND = "ONNX Runtime", "OpenVINO"
ANY = ""

Samples = Mapping[str, npt.NDArray[Any]]
# How often to run, to the seconds of each run.
Contender = Callable[[int], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """An ONNX file of batch 1 with samples to calibrate on: input name -> (n, *sample)."""

    name: str
    path: Path
    samples: Samples
    transformer: bool = False

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.samples.values())))

    def feed(self, index: int = 0) -> dict[str, npt.NDArray[Any]]:
        """One sample as a batch of one."""
        return {name: values[index : index + 1] for name, values in self.samples.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What is to be reached: ``contender``'s time over that of the fastest peer whose name begins with ``peers``.

    amx: on which machines it holds; None: on all. allowance: what two and more threads may take more.
    """

    networks: tuple[str, ...]
    ratio: float
    contender: str = "hwq w8a8"
    peers: str = ANY
    amx: bool | None = None
    allowance: float = 0.0


BARS = (
    Bar(networks=("resnet50",), ratio=0.65, amx=True, allowance=0.05),
    Bar(networks=("mobilenetv2", "resnet18", "squeezenet"), ratio=0.75, amx=True, allowance=0.05),
    Bar(networks=("resnet50",), ratio=1.0, peers=SECOND, amx=False),
    Bar(networks=("resnet50",), ratio=0.85, peers=FIRST, amx=False),
    Bar(networks=("mobilenetv2",), ratio=0.8, amx=False),
    Bar(networks=("resnet20", "resnet8", "dscnn"), ratio=0.5),
    Bar(networks=("resnet50",), ratio=1.1, contender="hwq f32", peers="ONNX Runtime f32"),
    Bar(networks=("minilm", "bert-base"), ratio=0.6, amx=True),
    Bar(networks=("minilm", "bert-base"), ratio=0.9, amx=False),
)
# How much faster two threads are to be than one.
SCALING = (("resnet50", "hwq w8a8", 1.7),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One network with one number of threads: the seconds of every call of each contender."""

    network: str
    threads: int
    times: Mapping[str, Sequence[float]]

    @property
    def usual(self) -> dict[str, float]:
        """What counts, in seconds, by contender."""
        return {name: usual_s(values) for name, values in self.times.items()}

    def fastest(self, peers: str = ANY) -> float | None:
        """The fastest peer's seconds, of those whose name begins with ``peers``; None where there is none."""
        found = [s for name, s in self.usual.items() if not name.startswith(OURS) and name.startswith(peers)]
        return min(found, default=None)

    def ratio(self, contender: str, peers: str = ANY) -> float | None:
        """The contender's time over the fastest peer's; None where one of them was left out."""
        own, other = self.usual.get(contender), self.fastest(peers)
        return None if own is None or other is None else own / other

    def least_ratio(self, contender: str) -> float | None:
        """As ``ratio``, of the least times: a second opinion where the machine had other work."""
        others = [min(values) for name, values in self.times.items() if not name.startswith(OURS)]
        return min(self.times[contender]) / min(others) if contender in self.times and others else None


def in_turns(contenders: Mapping[str, Contender], rounds: int, runs: int) -> dict[str, list[float]]:
    """The seconds of ``rounds`` times ``runs`` calls of each contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            run(WARM_UP)
            times[name] += run(runs)
            time.sleep(PAUSE_S)
    return times


def usual_s(values: Sequence[float]) -> float:
    """The median of the faster half."""
    return statistics.median(sorted(values)[: (len(values) + 1) // 2])


def bars_of(result: Result, amx: bool) -> list[tuple[Bar, float, float | None]]:
    """The bars that this result is held against: each with its ratio for these threads, and the ratio reached."""
    return [
        (bar, bar.ratio + (bar.allowance if result.threads > 1 else 0.0), result.ratio(bar.contender, bar.peers))
        for bar in BARS
        if result.network in bar.networks and bar.amx in (None, amx)
    ]


def verdict(reached: float | None, bar: float) -> str:
    """ "met", "missed", or "not run" where a contender was left out."""
    return "not run" if reached is None else "met" if reached <= bar else "missed"


def table(result: Result) -> str:
    """One result: the times, and how many times as fast as the fastest peer each contender is."""
    best = result.fastest()
    lines = [
        f"### {result.network}, {result.threads} thread{'s' if result.threads > 1 else ''}",
        "",
        "| contender | ms | median of all | least | times as fast as the fastest peer |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, values in result.times.items():
        shown = [usual_s(values), statistics.median(values), min(values)]
        fast = "" if best is None else f"{best / shown[0]:.2f}"
        lines.append(f"| {name} | {' | '.join(f'{seconds * 1e3:.3f}' for seconds in shown)} | {fast} |")
    return "\n".join(lines)


def summary(results: Sequence[Result], amx: bool) -> str:
    """All results, a line each: ms of every contender, hwq's over the peers', and the bars."""
    names = list(dict.fromkeys(name for result in results for name in result.times))
    own = [name for name in names if name.startswith(OURS)]
    head = [
        "network",
        "threads",
        *names,
        *(f"{name} / fastest, {FIRST}, {SECOND} (least times)" for name in own),
        "bars",
    ]
    lines = ["### Summary: ms, ratios (less is better), bars", "", f"| {' | '.join(head)} |"]
    lines.append("|---|" + "---:|" * (len(head) - 2) + "---|")
    for result in results:
        usual = result.usual
        row = [result.network, str(result.threads)]
        row += [f"{usual[name] * 1e3:.3f}" if name in usual else "" for name in names]
        row += [_ratios(result, name) for name in own]
        row.append("; ".join(_shown(*held) for held in bars_of(result, amx)))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, *_scalings(results)])


def _ratios(result: Result, name: str) -> str:
    found = [result.ratio(name, peer) for peer in _GROUPS]
    shown = ["" if ratio is None else f"{ratio:.2f}" for ratio in (*found, result.least_ratio(name))]
    return f"{', '.join(shown[:-1])} ({shown[-1]})"


_GROUPS = (ANY, FIRST, SECOND)


def _shown(bar: Bar, limit: float, reached: float | None) -> str:
    against = bar.peers or "fastest"
    figure = "" if reached is None else f" ({reached:.2f})"
    return f"{bar.contender} / {against} <= {limit:.2f}: {verdict(reached, limit)}{figure}"


def _scalings(results: Sequence[Result]) -> list[str]:
    """How much faster two threads are, where both were run and it is asked for."""
    seconds = {(it.network, it.threads, name): s for it in results for name, s in it.usual.items()}
    lines = []
    for network, contender, least in SCALING:
        one, two = (seconds.get((network, threads, contender)) for threads in (1, 2))
        if one is not None and two is not None:
            word = "met" if one / two >= least else "missed"
            lines.append(f"\n{network}, {contender}: two threads are {one / two:.2f} times as fast; >= {least}: {word}")
    return lines


def to_json(results: Sequence[Result], amx: bool) -> list[dict[str, Any]]:
    """The results as plain values; times in ms."""
    return [
        {
            "network": result.network,
            "threads": result.threads,
            "ms": {
                name: {"usual": usual_s(t) * 1e3, "median": statistics.median(t) * 1e3, "min": min(t) * 1e3}
                for name, t in result.times.items()
            },
            "ratios": {
                name: {peer or "fastest": result.ratio(name, peer) for peer in _GROUPS}
                | {"least times": result.least_ratio(name)}
                for name in result.times
                if name.startswith(OURS)
            },
            "bars": [
                {
                    "contender": bar.contender,
                    "peers": bar.peers or "fastest",
                    "bar": limit,
                    "ratio": reached,
                    "verdict": verdict(reached, limit),
                }
                for bar, limit, reached in bars_of(result, amx)
            ],
        }
        for result in results
    ]
