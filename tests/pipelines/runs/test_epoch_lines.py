"""What the terminal says of an epoch, worked out by hand, and which epochs it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.runs import runlog
from pipelines.runs.epoch_lines import describe, follow
from tests.pipelines import small_runs

SPEED = {"images_per_s": 912.4, "mfu": 0.314, "share": {}, "flops_per_step": 9}
CACHED: dict[str, Any] = {
    "stage": "prompts",
    "epoch": 0,
    "losses": {"total": 4.15749},
    "seconds": {"step": 1.25, "checkpoint": 0.5},
    "speed": SPEED | {"images_per_s": None, "mfu": None},
}
STREAMED: dict[str, Any] = {
    "stage": "align",
    "epoch": 4,
    "losses": {"visible": 1.0, "total": 2.34567},
    "clusters": {"visible": 26, "infrared": 12},
    "outliers": {"visible": 8, "infrared": 1},
    "rows": {"visible": 120, "infrared": 60},
    "pairs": 6,
    "scores": {"rank1": 38.26, "mAP": 37.72},
    "seconds": {"step": 8.5, "input": 0.93},
    "speed": SPEED,
}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (CACHED, " prompts   1/60  loss 4.157  1.8 s"),
        (
            STREAMED,
            "   align   5/60  loss 2.346  clusters 26+12, 5% outliers, 6 pairs"
            "  Rank-1 38.3 mAP 37.7  912 images/s (31% of the GPU's peak)  9.4 s",
        ),
        (
            {**CACHED, "stage": "align", "speed": SPEED | {"mfu": None}, "search_recall": 0.9876},
            "   align   1/60  loss 4.157  recall of neighbors 0.988  912 images/s  1.8 s",
        ),
    ],
)
def test_an_epoch_is_one_line(line: Any, expected: str) -> None:
    assert describe(line, 60) == expected


def test_every_epoch_is_said_once_and_what_it_warns_of_as_it_is(
    trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of an earlier start were said then; a name in brackets is no markup."""
    config = small_runs.make_config("cclnet", trees)
    runlog.append_metrics(tmp_path, CACHED)
    with follow(tmp_path, config):
        runlog.append_metrics(
            tmp_path, {**CACHED, "epoch": 1, "warnings": ["[a]/[/b]/:x: is gone"]}
        )
        runlog.append_metrics(tmp_path, {**STREAMED, "epoch": 0})
    said = capsys.readouterr().out.splitlines()
    assert [line.split("loss")[0].split() for line in said if "loss" in line] == [
        ["prompts", "2/2"],
        ["align", "1/2"],
    ]
    assert said[1] == "warning: [a]/[/b]/:x: is gone"
