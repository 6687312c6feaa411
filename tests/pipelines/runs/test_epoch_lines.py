"""What the terminal says of an epoch."""

from __future__ import annotations

from typing import Any

from pipelines.runs.epoch_lines import describe


def test_the_recall_of_an_approximate_search_is_printed_with_its_epoch() -> None:
    line: Any = {"stage": "align", "epoch": 0, "losses": {"total": 1.0}, "seconds": {"step": 2.0}}
    assert "recall" not in describe(line, 3)
    text = describe(line | {"search_recall": 0.91349}, 3)
    assert text.split("  ")[-2:] == ["recall of neighbors 0.913", "2.0 s"]
