"""Nodes go and come while a run trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.night
def test_a_run_on_nodes_that_go_and_come_ends_as_the_undisturbed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three nodes, two workers, one, two; strict, so that the hashes must be equal."""
    script = Path(__file__).parents[3] / "benchmarks" / "elastic.py"
    out = tmp_path / "elastic.json"
    command = [sys.executable, str(script), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[1])
    with capsys.disabled():
        sys.stdout.write("\n" + done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    for run in result.values():
        assert all(epoch["nodes"] == epoch["workers"] for epoch in run["epochs"])
        assert run["lines"] == len(run["epochs"])
