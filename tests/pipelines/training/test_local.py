"""The run without Ray: the same log as with it, in one process, through a kill."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from pipelines.data import gate, listed, sound_weights
from pipelines.data.decoded import Decoded
from pipelines.evaluation import calibrated
from pipelines.report import page
from pipelines.runs import checkpoint, runlog, warned
from pipelines.training import in_process, local, run
from pipelines.training.epoch import EpochStart
from pipelines.training.job import Job
from pipelines.training.progress import Progress
from pipelines.training.thread_stream import batches
from tests.pipelines import small_runs

WITHOUT_RAY = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "faiss", "tensorboardX"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from tests.pipelines import small_runs
from pipelines.training import local

config = small_runs.make_config(sys.argv[1], Path(sys.argv[2]), "evaluation.calibrate=true")
summary = local.train(config, Path(sys.argv[3]))
assert not any(name.partition(".")[0] == "ray" for name in sys.modules)
print(summary["rows"]["final"]["rank1"])
"""


@pytest.mark.slow
def test_it_trains_where_ray_is_not_installed(trees: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, "cclnet", str(trees), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = list(runlog.read_metrics(tmp_path / "run"))
    assert [line["stage"] for line in lines] == ["prepare"] * 2 + ["prompts"] * 2 + ["align"] * 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"]["final"] == summary["rows"]["align"]
    assert (tmp_path / "run" / "evaluation" / "final.npz").exists()
    assert len(list((tmp_path / "run").glob("checkpoint_*"))) == 2
    known = calibrated.load(tmp_path / "run")
    assert known is not None
    assert "infrared visible" in known.maps


def test_runs_in_turn_pass_the_gate_once_and_each_keeps_what_it_warned_of(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, weigh = Mock(wraps=listed.read), Mock(wraps=sound_weights.check)
    monkeypatch.setattr(gate, "read", read)
    monkeypatch.setattr(sound_weights, "check", weigh)
    monkeypatch.setattr(local, "_fit", lambda *_, **__: Progress())
    monkeypatch.setattr(run, "finish", lambda *_: {})
    monkeypatch.setattr(page, "write", lambda run_dir: None)
    runs = dict.fromkeys((tmp_path / "a", tmp_path / "b"), small_runs.make_config("cclnet", trees))
    local.train_all(runs, [])
    assert (read.call_count, weigh.call_count) == (2, 1)
    words = "trained on images of 96 x 48"
    assert caplog.text.count(words) == 1
    assert [sum(words in line for line in warned.read(one)) for one in runs] == [1, 1]


def test_a_run_that_cannot_be_calibrated_says_so_and_what_to_do(
    trees: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_runs.make_config("cclnet", trees)
    backend = SimpleNamespace(calibrate=lambda *_: "OutOfMemoryError: CUDA out of memory")
    run.calibrate(config, tmp_path, backend)  # type: ignore[arg-type]
    assert caplog.messages == [
        "similarities have no probability yet: OutOfMemoryError: CUDA out of memory; "
        f"`crossreid calibrate {tmp_path}` gives them one"
    ]


def test_a_killed_run_goes_on_to_the_same_content_where_its_data_was_moved(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with a raised limit of broken images, the remedy that a run is stopped with."""
    config = small_runs.make_config("csdn", trees)
    local.train(config, tmp_path / "whole")
    (warning,) = warned.read(tmp_path / "whole")  # of the gate, which passed before the folder was
    assert "trained on images of 96 x 48" in warning

    calls = []

    def dies(job: Job, start: EpochStart, *, readers: int = 1) -> object:
        calls.append(start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return batches(job, start, readers=readers)

    removed = []
    with monkeypatch.context() as changed:
        changed.setattr(in_process, "batches", dies)
        changed.setattr(Decoded, "remove", lambda self: removed.append(self))
        with pytest.raises(KeyboardInterrupt):
            local.train(config, tmp_path / "cut")
    assert removed
    moved = shutil.copytree(trees / "sysu", tmp_path / "moved")
    goes_on = small_runs.make_config(
        "csdn",
        trees,
        f"data.root={moved}",
        "data.max_unreadable=0.5",
        "data.allow_http=true",
    )
    local.train(goes_on, tmp_path / "cut")
    assert sum(f"{moved}: the run goes on" in said for said in caplog.messages) == 1
    hashes = [
        checkpoint.content_hash(checkpoint.load(checkpoint.find(tmp_path / name)))
        for name in ("whole", "cut")
    ]
    assert hashes[0] == hashes[1]
    epochs = [(line["stage"], line["epoch"]) for line in runlog.read_metrics(tmp_path / "cut")]
    assert len(epochs) == len(set(epochs)) == 6
