"""The benchmark of GPUs runs on a CPU too, where neither Ray nor a network is: it cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a machine with a GPU has, or is brought as a wheel by benchmarks/gpu_wheels.sh, is allowed.
SITE = """
import sys

class Blocked:
    names = {"ray", "faiss", "optuna", "serve", "tensorboardX"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.slow
def test_every_step_runs_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    here = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tmp_path), str(here)])
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes", "30"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path},
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(x) for x in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line for line in lines if "error" in line] == []
    whole = {line["step"] for line in lines if line.get("case") == "whole step"}
    assert whole == {"agreement", "search", "embed", "steps", "epoch", "ddp"}
    assert all(line["agrees"] for line in lines if "agrees" in line)
