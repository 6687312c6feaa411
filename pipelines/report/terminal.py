"""The main table of a run for the terminal."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines.report import scores, words
from pipelines.runs.records import Summary


def summary_table(summary: Summary) -> Table:
    """The report's main table, to be printed by a rich console.

    Args:
        summary: content of summary.json; scores are percentages.

    Returns:
        A table with one line per row of the summary and the difference to the start beside
        each score, 80 columns wide.
    """
    table = Table(
        title="Scores in %, and the difference to the start",
        box=box.SIMPLE,  # fits 80 columns
        caption=escape(str(summary.get("protocol", ""))) or None,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", min_width=14)
    for name in words.SCORES.values():
        table.add_column(name, justify="right", no_wrap=True)
    for row in scores.rows(summary):
        cells = [f"{cell.value} {cell.gain}" if cell.gain else cell.value for cell in row.cells]
        table.add_row(escape(row.title), *cells, style="bold" if row.key == "final" else None)
    return table
