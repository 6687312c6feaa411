"""What was tried and what came of it, for the table that `make test-faults` prints."""

from __future__ import annotations

from collections import Counter, defaultdict

OUTCOMES = ("answered", "silent", "traceback", "hang", "unclear", "slow", "through")
ROWS: dict[str, Counter[str]] = defaultdict(Counter)


def note(row: str, outcome: str) -> None:
    """Count one trial."""
    assert outcome in OUTCOMES
    ROWS[row][outcome] += 1


def table() -> str:
    """Markdown: a line per kind of trial."""
    head = ("what", "tried", *OUTCOMES)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row, counts in ROWS.items():
        cells = [row, counts.total(), *(counts[outcome] for outcome in OUTCOMES)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
