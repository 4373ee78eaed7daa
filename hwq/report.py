"""Reports for people: the layer table and the figures of an artifact or a plan, as terminal tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


RESOLUTION_S = 1e-7  # what is shorter cannot be told from the clock's own cost


def seconds(value: float | None) -> str:
    """A time with the unit that fits it: 12.3 us, 4.56 ms, 1.2 s; a dash for None."""
    if value is None:
        return "-"
    if 0 < value < RESOLUTION_S:
        return f"< {RESOLUTION_S * 1e6:g} us"
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def size(value: float | None) -> str:
    """Bytes with the unit that fits: 812 B, 4.2 kB, 3.1 MB (powers of ten); a dash for None."""
    if value is None:
        return "-"
    for factor, unit in ((1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}%"


def decibels(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f} dB" for value in values)


def layer_table(report: Mapping[str, Any]) -> Table:
    """One row a layer: scheme, times, bytes, loss."""
    table = Table(title=f"{report['model']} on {report['target']}, {report['threads']} thread(s)")
    table.add_column("layer", overflow="fold")
    for column in ("op", "scheme"):
        table.add_column(column)
    for column in ("predicted", "measured", "weights", "loss"):
        table.add_column(column, justify="right")
    for row in report["layers"]:
        measured = row.get("measured_s")
        loss = "-" if row["loss"] is None else f"{row['loss']:.1e}"
        cells = (seconds(row["predicted_s"]), seconds(measured), size(row["weight_bytes"] or None), loss)
        table.add_row(row["name"], row["op"], row["scheme"], *cells)
    return table


def figures_table(report: Mapping[str, Any]) -> Table:
    """Predicted against measured: latency, bytes, accuracy."""
    table = Table(title="the whole network")
    table.add_column("figure")
    table.add_column("predicted", justify="right")
    table.add_column("measured", justify="right")
    predicted, measured = report["predicted"], report.get("measured") or {}
    table.add_row("latency", seconds(predicted["latency_s"]), seconds(measured.get("latency_s")))
    table.add_row("weights", size(predicted["weight_bytes"]), size(measured.get("weight_bytes")))
    table.add_row("library, code and weights", "-", size(measured.get("library_bytes")))
    table.add_row(f"conversions ({measured.get('conversions', 0)}) in that latency", "-", seconds(measured.get("conversions_s")))
    for name, other in (report.get("alternatives") or {}).items():
        table.add_row(f"latency of {name}", "-", seconds(other.get("latency_s")))
    accuracy = measured.get("accuracy")
    if accuracy is not None:
        where = f"{accuracy['samples']} {accuracy['source']} samples"
        if accuracy["score"] is not None:
            table.add_row(f"float score, {where}", "-", percent(accuracy["float_score"]))
            table.add_row("compiled score", "-", percent(accuracy["score"]))
        table.add_row(f"drop, {where}", "-", percent(accuracy["drop"]))
        table.add_row("agreement with float", "-", percent(accuracy["agreement"]))
        table.add_row("SQNR of the outputs", "-", decibels(accuracy["sqnr_db"]))
    return table


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print both tables and what stayed in float."""
    console.print(layer_table(report))
    console.print(figures_table(report))
    for line in report.get("notes", ()):
        console.print(f"note: {line}", highlight=False)


def explain(report: Mapping[str, Any], layers: Sequence[str], console: Console) -> None:
    """Why each of ``layers`` (all where empty) runs in what it runs in."""
    for row in report["layers"]:
        if not layers or row["name"] in layers:
            console.print(f"[bold]{row['name']}[/bold] ({row['op']}): {row['why']}", highlight=False)
