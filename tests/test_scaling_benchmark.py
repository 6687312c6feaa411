"""The benchmark of large data runs: its phases agree on a small world, so it cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROWS = 5000


@pytest.mark.slow
def test_every_phase_runs_and_both_exact_ones_find_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scaling", "--out", str(tmp_path)]
    command += ["--rows", str(ROWS), "--width", "16"]
    for phase in ([], ["--phase", "workers"]):
        done = subprocess.run(
            [*command, *phase],
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    written = (tmp_path / "scaling.jsonl").read_text().splitlines()
    lines: dict[str, Any] = {line["phase"]: line for line in map(json.loads, written)}
    assert lines.keys() == {"arrive", "blocks", "nearest", "graph", "turn", "workers"}
    assert {line["rows"] for line in lines.values()} == {ROWS}
    assert lines["blocks"]["blocks"] == lines["blocks"]["of"] == -(-ROWS // 1024)
    assert lines["nearest"]["digest"] == lines["workers"]["digest"]
    assert 0.9 < lines["graph"]["recall"] <= 1
    assert lines["turn"]["clusters"] > 1
