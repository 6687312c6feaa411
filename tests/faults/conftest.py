"""The table of faults after the tests of this folder."""

from __future__ import annotations

from typing import Any

from tests.faults import ledger


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print it where all of them ran."""
    if sum(counts.total() for counts in ledger.ROWS.values()) > 100:
        terminalreporter.write_line(ledger.table())
