"""Reports for people: what an artifact, a plan or a target holds, as tables that fit 80 columns.

Names come from users' files, so they are never read as markup.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hwq.plan import Plan
from hwq.progress import duration

RESOLUTION_S = 1e-7  # what is shorter cannot be told from the clock's own cost
DASH = "-"


def seconds(value: float | None) -> str:
    """A time with the unit that fits it: 12.3 us, 4.56 ms, 1.20 s; a dash for None."""
    if value is None:
        return DASH
    if 0 < value < RESOLUTION_S:
        return f"< {RESOLUTION_S * 1e6:g} us"
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= 0.9995 * factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{_digits(value * 1e6)} us"


def size(value: float | None) -> str:
    """Bytes with the unit that fits: 812 B, 4.20 kB, 3.10 MB (powers of ten); a dash for None."""
    if value is None:
        return DASH
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def percent(value: float | None) -> str:
    """A fraction as 12.34%; a dash for None."""
    return DASH if value is None else f"{100 * value:.2f}%"


def decibels(values: Sequence[float]) -> str:
    """One figure an output: 36.7 dB, or "equal" where nothing differs."""
    return ", ".join("equal" if value == math.inf else f"{value:.1f} dB" for value in values)


def count(number: int, thing: str) -> str:
    """1 thread, 2 threads."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _digits(value: float) -> str:
    """Three significant digits, never with an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _loss(value: float | None) -> str:
    return DASH if not value else f"{value:.1e}"


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table: columns of text, of which the first folds where there is no room, then columns of numbers."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(texts):
        table.add_column(name, overflow="fold", no_wrap=i > 0)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def layer_table(report: Mapping[str, Any]) -> Table:
    """One row a layer: scheme, times, bytes, loss."""
    threads = count(report["threads"], "thread")
    title = f"{report['model']} on {report['target']}, {threads}"
    table = _table(title, ("layer", "op", "scheme"), ("predicted", "measured", "weights", "loss"))
    for row in report["layers"]:
        times = (seconds(row["predicted_s"] or None), seconds(row.get("measured_s") or None))
        cells = (*times, size(row["weight_bytes"] or None), _loss(row["loss"]))
        _row(table, row["name"], _op(row["op"]), row["scheme"], *cells)
    return table


def figures_table(report: Mapping[str, Any]) -> Table:
    """The whole network, predicted against measured: latency, bytes, accuracy."""
    table = _table("the whole network", ("figure",), ("predicted", "measured"))
    predicted, measured = report["predicted"], report.get("measured") or {}
    _row(table, "latency of a call", seconds(predicted["latency_s"]), seconds(measured.get("latency_s")))
    conversions = measured.get("conversions", 0)
    if conversions:
        _row(table, f"  of it in {count(conversions, 'conversion')}", DASH, seconds(measured.get("conversions_s")))
    _row(table, "weights", size(predicted["weight_bytes"]), size(measured.get("weight_bytes")))
    _row(table, "library, code and weights", DASH, size(measured.get("library_bytes")))
    if measured.get("accuracy"):
        for figure, value in _accuracy_rows(measured["accuracy"]):
            _row(table, figure, DASH, value)
    return table


def _accuracy_rows(accuracy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was found on the samples, as (figure, value)."""
    samples = f"{accuracy['samples']} {'calibration' if accuracy['source'] != 'evaluate' else 'evaluation'} samples"
    found = []
    if accuracy["source"] == "function":  # in the user's own unit
        for figure, key in (("score of float", "float_score"), ("score of this", "score"), ("score lost", "drop")):
            found.append((figure, f"{accuracy[key]:.4g}"))
    elif accuracy["score"] is not None:
        found.append((f"top-1 of float, {samples}", percent(accuracy["float_score"])))
        found.append(("top-1 of this", percent(accuracy["score"])))
        found.append(("top-1 lost", percent(accuracy["drop"])))
    if accuracy["agreement"] is not None:
        found.append((f"same class as float, {samples}", percent(accuracy["agreement"])))
    found.append((f"SQNR against float, {samples}", decibels(accuracy["sqnr_db"])))
    return found


def alternatives_table(report: Mapping[str, Any]) -> Table:
    """What else was built and measured, beside what was taken."""
    table = _table("what was compared", ("schemes",), ("latency", "weights", "drop"))
    measured = report["measured"]
    score = (measured.get("accuracy") or {}).get("source") == "function"
    for name, one in ({"taken": measured} | dict(report["alternatives"])).items():
        shown = {"taken": "this one", "chosen": "the proposal"}.get(name, name)
        drop = one.get("drop")
        lost = f"{drop:.4g}" if score and drop is not None else percent(drop)
        _row(table, shown, seconds(one.get("latency_s")), size(one.get("weight_bytes")), lost)
    return table


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the tables, the verdict and what a reader should know."""
    console.print(layer_table(report))
    _say(console, f"layers: {_used(row['scheme'] for row in report['layers'])}\n")
    console.print(figures_table(report))
    if report.get("alternatives"):
        console.print(alternatives_table(report))
    if report.get("fit"):
        fit = report["fit"]
        line = f"{fit['scale']:.3g} x the sum of prices + {seconds(fit['offset_s'])}, to {percent(fit['residual'])}"
        _say(console, f"what was built took {line}, of {count(fit['count'], 'network')}")
    if report.get("verdict"):
        _say(console, f"taken: {report['verdict'].rsplit(': ', 1)[0]}")  # its times are in the table
    if holders(report):
        _say(console, f"the loss is held by: {holders(report)}")
    for line in certificate_lines(report):
        _say(console, line)
    for line in study_lines(report):
        _say(console, line)
    for line in report.get("notes", ()):
        _say(console, f"note: {line}")


def explain(report: Mapping[str, Any], layers: Sequence[str], console: Console) -> None:
    """Why each of ``layers`` (all where empty) runs in what it runs in, and what else it could do."""
    for row in report["layers"]:
        if not layers or row["name"] in layers:
            console.print(f"[bold]{escape(row['name'])}[/bold] ({_op(row['op'])})", highlight=False)
            for sentence in sentences(row, report):
                console.print(Padding(Text(sentence), (0, 0, 0, 4)))


def sentences(row: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """What is to be said of one layer: why its scheme, what it holds, the next cheaper scheme, and that one forced."""
    found = [row["why"]]
    shares = row.get("shares")
    if shares and any(shares.values()):
        parts = (("time", "latency_s"), ("bytes", "weight_bytes"), ("loss", "loss"))
        found.append("holds " + ", ".join(f"{shares[key]:.1%} of the {word}" for word, key in parts))
    step = row.get("cheaper")
    if step is None:
        return found
    ways: list[tuple[float, Callable[[float], str]]] = [(step["saves_s"], seconds), (step["saves_bytes"], size)]
    gains = [shown(value) for value, shown in ways if value > 0]
    costs = [f"{shown(-value)} more" for value, shown in ways if value < 0]
    change = f"{'adds' if step['adds_loss'] >= 0 else 'takes away'} {abs(step['adds_loss']):.1e} of loss"
    costs_text = f", takes {' and '.join(costs)}" if costs else ""
    together = f" for {', '.join(step['together'])} together" if "together" in step else ""
    found.append(
        f"next cheaper: {step['scheme']}{together} saves {' and '.join(gains)}{costs_text} and {change}, "
        "all else as it is"
    )
    forced = row.get("forced")
    if forced is not None:
        whole = report["predicted"]
        moved = [
            f"{shown(forced[key])} ({forced[key] / whole[key] - 1:+.1%})"
            for key, shown in (("latency_s", seconds), ("weight_bytes", size))
            if whole[key]
        ]
        loss = f"loss {forced['loss']:.1e} instead of {whole['loss']:.1e}"
        changed = count(forced["changed"], "layer") + " otherwise than now"
        found.append(f"forced to {step['scheme']}, the rest chosen anew: {', '.join([*moved, loss])}; {changed}")
    return found


def certificate_lines(report: Mapping[str, Any]) -> list[str]:
    """The certificate in words: predicted against measured, and whether the intervals of 90% hold."""
    found = report.get("certificate")
    if not found:
        return []
    one, layers, drop = found["latency_s"], found["layers"], found["drop"]
    low, high = one["interval"]
    measured = (
        "not measured" if one["measured"] is None else f"measured {seconds(one['measured'])}{_held(one['inside'])}"
    )
    lines = [f"latency: predicted {seconds(one['predicted'])} ({seconds(low)} to {seconds(high)}), {measured}"]
    if layers["count"]:
        worst = "" if layers["worst"] is None else f", the farthest {layers['worst']}"
        median = "" if layers["median_error"] is None else f", median error {layers['median_error']:.0%}{worst}"
        lines.append(f"layers: {layers['inside']} of {layers['count']} inside their intervals{median}")
    one = found["weight_bytes"]
    lines.append(f"weights: predicted {size(one['predicted'])}, measured {size(one['measured'])}")
    if drop is not None and drop["interval"] is not None:
        low, high = drop["interval"]
        expected = "" if drop["predicted"] is None else f"predicted {percent(drop['predicted'])}, "
        lines.append(
            f"drop: {expected}measured {percent(drop['measured'])} ({percent(low)} to {percent(high)} by "
            f"{count(drop['samples'], 'sample')}){_held(drop['inside'])}"
        )
    if found["sqnr_db"] is not None:
        noise = found["sqnr_db"]
        lines.append(f"SQNR: predicted {noise['predicted']:.1f} dB, measured {decibels(noise['measured'])}")
    return lines


def study_lines(report: Mapping[str, Any]) -> list[str]:
    """How well losses are known, and what finding it all out took, in words; what a report lacks is left out."""
    found = []
    if report.get("scores"):
        scores = report["scores"]
        held, alone = scores["held_out"], scores["isolated"]
        assignments = count(scores["plans"], "whole assignment")
        found.append(
            f"losses: fitted to {assignments} on {count(scores['samples'], 'sample')}; of such left out R2 "
            f"{held['r2']:.2f} and rank {held['spearman']:.2f}, by layers alone {alone['r2']:.2f} and "
            f"{alone['spearman']:.2f}"
        )
    if report.get("compile"):
        took = report["compile"]
        most = took["peak_memory_bytes"]
        memory = "" if most is None else f"; the process held {size(most)} of memory at most"
        found.append(f"compiled in {duration(took['seconds'])}{memory}")
    return found


def _held(inside: bool | None) -> str:
    """Whether predicted and measured agree within the interval; nothing where it cannot be said."""
    return "" if inside is None else ", inside" if inside else ", outside"


def holders(report: Mapping[str, Any], most: int = 5) -> str | None:
    """Which layers hold the drop: the largest parts of the loss, in words; None where nothing is lost or known."""
    shares = {row["name"]: (row.get("shares") or {}).get("loss", 0.0) for row in report["layers"]}
    largest = [name for name in sorted(shares, key=lambda name: -shares[name]) if shares[name] > 0][:most]
    return ", ".join(f"{name} {shares[name]:.0%}" for name in largest) or None


def show_front(points: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the points of a front, as ``Point.to_dict`` has them: one row each, by rising latency."""
    table = _table("the front", ("plan", "layers"), ("predicted", "weights", "loss", "drop", "same class"))
    for number, one in enumerate(points, 1):
        accuracy = one["accuracy"] or {}
        figures = (seconds(one["latency_s"]), size(one["weight_bytes"]), _loss(one["loss"]))
        measured = (percent(accuracy.get("drop")), percent(accuracy.get("agreement")))
        _row(table, f"{number:02d}", _short(one["schemes"].values()), *figures, *measured)
    console.print(table)
    close = sum(len(one["alternatives"]) for one in points)
    if close:
        _say(console, f"{count(close, 'other plan')} as good as one of these but for 2%: see --json")


def _short(schemes: Iterable[str]) -> str:
    return " ".join(f"{number}x{scheme}" for scheme, number in sorted(Counter(schemes).items()))


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan: one row a layer, and what the whole is predicted to take."""
    title = f"plan for {plan.target}, {count(plan.threads, 'thread')}"
    table = _table(title, ("layer", "scheme"), ("predicted", "weights", "loss"))
    for name, scheme in plan.schemes.items():
        cost, loss = plan.layers.get(name, (None, None))
        cells = (seconds(cost.latency_s or None), size(cost.weight_bytes or None)) if cost else (DASH, DASH)
        _row(table, name, scheme, *cells, _loss(loss))
    console.print(table)
    _say(console, f"layers: {_used(plan.schemes.values())}")
    whole = f"{seconds(plan.latency_s)} a call with conversions, {size(plan.weight_bytes)} of weights"
    _say(console, f"predicted: {whole}, loss {_loss(plan.loss)}")


def show_targets(targets: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print the machines there are, by name."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("target", "builds now", "machine"):
        table.add_column(name, no_wrap=name != "machine")
    for name, one in targets.items():
        _row(table, name, "yes" if one["builds"] else "no", one["machine"])
    console.print(table)


def show_target(target: Mapping[str, Any], console: Console) -> None:
    """Print a target: the machine, then what it can compute."""
    builds = "yes" if target["builds"] else "no, it is only described so far"
    levels = {f"L{level}": target[f"l{level}_bytes"] for level in (1, 2, 3)}
    caches = ", ".join(f"{name} {_binary(value)}" for name, value in levels.items() if value)
    rows = (
        ("target", target["name"]),
        ("machine", target["description"]),
        ("builds now", builds),
        ("cores", f"{target['cores']} at {target['clock_hz'] / 1e9:.3g} GHz"),
        ("vectors", f"{target['vector_bits']} bits"),
        ("caches", caches),
        ("memory", f"{target['memory_bytes_per_s'] / 1e9:.3g} GB/s"),
        ("needs", ", ".join(target["cpu_flags"]) or "no special instructions"),
    )
    facts = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        _row(facts, *row)
    console.print(facts)
    table = _table("what it computes", ("operators", "weights", "values", "instruction"), ("per cycle",))
    for way in target["compute"]:
        ops = "all others" if "*" in way["ops"] else ", ".join(_op(op) for op in way["ops"])
        rate = f"{way['macs_per_cycle']:g}"
        _row(table, ops, way["weight"], way["act"], way["instruction"], rate)
    console.print(table)
    _say(console, "per cycle: multiply-adds of one core, or elements where nothing is multiplied")


def _used(schemes: Iterable[str]) -> str:
    return ", ".join(f"{number} in {scheme}" for scheme, number in sorted(Counter(schemes).items()))


def _op(name: str) -> str:
    return "depthwise" if name == "depthwise_conv2d" else name


def _binary(value: int) -> str:
    """A cache's size: 48 KiB, 2 MiB."""
    return f"{value / 1024**2:g} MiB" if value >= 1024**2 else f"{value / 1024:g} KiB"


def _say(console: Console, text: str) -> None:
    console.print(Text(text))
