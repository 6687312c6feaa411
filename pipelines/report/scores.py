"""The main table as data, shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.report import words
from pipelines.runs.records import Summary

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """One score as text: the percentage, and the difference to the start ("" for the start)."""

    value: str
    gain: str


@dataclass(frozen=True)
class Row:
    """One line of the main table.

    Attributes:
        key: "start", "chance", a stage, "final" or "selected".
        title: what is shown first.
        note: what it means.
        cells: one per entry of `words.SCORES`.
    """

    key: str
    title: str
    note: str
    cells: tuple[Cell, ...]


def rows(summary: Summary) -> list[Row]:
    """Lines of the main table: chance, start, stages, full method, selected epoch.

    Args:
        summary: content of summary.json; scores are percentages.

    Returns:
        A line per row present. A stage, or a selected epoch, that scored exactly what the full
        method scored is its last one, evaluated once, and is not shown twice.
    """
    result: Mapping[str, Mapping[str, float]] = summary.get("rows") or {}
    start, final = result.get("start", {}), result.get("final")
    stages = [key for key in result if key not in words.ROWS and result[key] != final]
    last = [key for key in ("final", "selected") if key in result]
    if "selected" in last and result["selected"] == final:
        last.remove("selected")
    order = ["start"] * ("start" in result) + stages + last
    table = []
    chance = summary.get("chance") or {}
    if any(score is not None for score in chance.values()):
        table.append(Row("chance", "Chance", "guessing", _cells(chance, {})))
    for key in order:
        title, note = _title(key)
        if key == "final" and "selected" in result and "selected" not in last:
            note += ", best on validation identities"
        reference = {} if key == "start" else start
        table.append(Row(key, title, note, _cells(result[key], reference)))
    return table


def why_none(summary: Summary) -> str:
    """Why there are no scores, "" where there are."""
    if rows(summary):
        return ""
    if summary:
        return (
            "nothing was measured: the data set holds nothing that its protocol can measure with "
            "this encoder; the run's warnings say what is missing."
        )
    return "summary.json is missing or holds no scores, so this run has not finished."


def headline(summary: Summary) -> str:
    """The result in one or two sentences, "" where the start or the full method was not scored."""
    result = summary.get("rows") or {}
    try:
        before, after = result["start"]["rank1"], result["final"]["rank1"]
    except KeyError:
        return ""
    text = (
        f"After training, the first answer is right for {after:.1f} % of the queries; before "
        f"training it was {before:.1f} % ({signed(after - before)} points)."
    )
    chance = (summary.get("chance") or {}).get("rank1")
    return text if chance is None else f"{text} Guessing would be right for {chance:.1f} %."


def signed(value: float) -> str:
    """One decimal with its sign, a real minus sign and no "-0.0"."""
    rounded = round(value, 1)
    if rounded == 0:
        return "\N{PLUS-MINUS SIGN}0.0"
    return f"{'+' if rounded > 0 else MINUS}{abs(rounded):.1f}"


def _title(key: str) -> tuple[str, str]:
    if key in words.ROWS:
        return words.ROWS[key]
    stage = words.stage(key)
    return f"After {stage.label.lower()}", f"{stage.name} alone"


def _cells(scores: Mapping[str, float | None], start: Mapping[str, float]) -> tuple[Cell, ...]:
    def cell(name: str) -> Cell:
        if (score := scores.get(name)) is None:
            return Cell(NONE, "")
        gain = "" if start.get(name) is None else signed(score - start[name])
        return Cell(f"{score:.1f}", gain)

    return tuple(cell(name) for name in words.SCORES)
