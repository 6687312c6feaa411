"""A sweep that is interrupted, or begun twice: no trial is lost, and none is said to be over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.errors import UserError
from pipelines.storage import lock
from pipelines.sweep import ledger as ledgers
from pipelines.sweep import search_space, tuner
from pipelines.sweep.ledger import Ledger
from tests.pipelines.searches import WEIGHT, ended, search_writer

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

tuner.train_trial = trial
cli.main()
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return search_writer(tmp_path)


def test_two_commands_do_not_search_in_one_folder(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """Each would name its first trial as the other does, and write the list of its own alone."""
    study, root = search_space.load(write()), tmp_path / "sweep"
    expected = r"another process tunes in .*sweep: wait for it, end it, or choose another --out"
    with lock.held(root), pytest.raises(UserError, match=expected):
        tuner.search_for_best(study, root, [], resume=False)
    assert not (root / ledgers.SEARCH).exists()


def test_a_trial_takes_no_name_that_was_given(write: Callable[..., Path], tmp_path: Path) -> None:
    """Also where folders were deleted, of trials that are over and of others, or stand beside."""
    root, study = tmp_path / "sweep", search_space.load(write())
    points = search_space.points(study)
    assert points is not None
    ledger = Ledger(root, study, resume=False)
    names = [ledger.begin(point) for point in points[:4]]
    for name, point in zip(names[1:], points[1:], strict=False):
        ledger.end(ended(name, point, 30.0))
    (root / ledgers.FOLDER / "trial-of-mine").mkdir()
    for name in (names[0], names[3]):
        shutil.rmtree(root / ledgers.FOLDER / name)
    again = Ledger(root, study, resume=True)
    assert [again.begin(points[0]), again.begin(points[4])] == ["trial-004", "trial-005"]


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
