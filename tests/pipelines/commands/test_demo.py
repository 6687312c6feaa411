"""`crossreid demo`: what it draws is what it trains on, and it ends with scores and a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.commands import demo
from pipelines.config.run import RunConfig
from pipelines.runs import runlog
from pipelines.training import driver
from reid_core.methods import METHODS
from tests.pipelines import small_runs


class TrainingAsked(Exception):  # noqa: N818
    """Not an error: the end of this test."""


def test_the_training_reads_the_identities_that_were_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunConfig] = []

    def train(config: RunConfig, out: Path, command: Sequence[str]) -> dict[str, Any]:
        asked.append(config)
        raise TrainingAsked

    monkeypatch.setattr(driver, "train", train)
    monkeypatch.setattr(demo, "FAST_IDENTITIES", 10)
    with pytest.raises(TrainingAsked):
        demo.run(tmp_path / "a folder", method="cpcl", seed=3, fast=True, command=())
    (config,) = asked
    assert (config.method, config.seed) == ("cpcl", 3)
    prepared = small_runs.prepare_data(config)
    inputs = prepared.train_inputs
    assert Path(inputs.root) == tmp_path / "a folder" / "data"
    assert all(inputs.num_rows(m) for m in METHODS["cpcl"].inputs)


@pytest.mark.slow
@pytest.mark.night
@pytest.mark.parametrize("method", METHODS)
def test_the_command_ends_with_scores_and_a_report(method: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "demo", "--fast", "--method", method]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["rows"]) >= {"start", "final"}
    assert 0 < summary["rows"]["final"]["mAP"] <= 100
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert list(runlog.read_metrics(tmp_path / "run"))
