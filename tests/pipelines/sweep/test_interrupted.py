"""A sweep that is interrupted, or begun twice: no trial is lost, and none is said to be over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.sweep import ledger as ledgers
from tests.pipelines.searches import WEIGHT, search_writer

# The command, but that a trial reports one score and then waits where a file tells it to.
TUNE = """
import sys, time
from pathlib import Path
from pipelines import cli
from pipelines.sweep import tuner

wait = Path(sys.argv.pop(1))

def trial(point, *, runs):
    from ray import tune
    while wait.exists():
        time.sleep(0.2)
    scores = {"mAP": 40.0, "rank1": 50.0}
    shown = {"score": 40.0, "scores": scores, "runs": {"0": scores}}
    tune.report({**shown, "epochs": 1, "finished": True})

tuner._trial = trial
cli.main()
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return search_writer(tmp_path)


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_as_interrupted_and_resume_goes_on(
    write: Callable[..., Path], tree: Path, tmp_path: Path
) -> None:
    root, wait = tmp_path / "sweep", tmp_path / "wait"
    wait.touch()
    search = write(space={WEIGHT: {"values": [0.1, 1.0]}}, budget={"concurrent": 1})
    words = [str(wait), "tune", str(search), f"data.root={tree}", "trainer.num_workers=1"]
    command = [sys.executable, "-c", TUNE, *words, "--out", str(root)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 120
        while not list(root.glob("trials/*/values.json")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(3)  # Tune has made the trial's name, and is in its loop
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "--resume goes on" in " ".join(said.split())
    assert not (root / ledgers.BEST).exists()
    assert not (root / "report.html").exists()
    assert ledgers.read(root) == []
    wait.unlink()
    again = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, check=False, env=environment
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert [(trial.name, trial.status) for trial in ledgers.read(root)] == [
        ("trial-000", "finished"),
        ("trial-001", "finished"),
    ]
    assert yaml.safe_load((root / ledgers.BEST).read_text())["cclnet"]["image_to_text"] in (0.1, 1)
