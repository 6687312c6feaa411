"""What killed processes leave is removed; what somebody holds, or wrote whole, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
import ray.train
import torch

from pipelines.retrieval import additions
from pipelines.runs import checkpoint, recovery
from pipelines.storage import abandoned
from pipelines.training import worker

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.storage.abandoned import hold
handle = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""
WRITER = """
import sys, time
from pathlib import Path
from pipelines.storage.files import replace_file

def never_ends(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)

replace_file(Path(sys.argv[1]), never_ends)
"""


def begun(script: str, path: Path) -> subprocess.Popen[str]:
    """A process of this code, once it has said that it is underway."""
    command = [sys.executable, "-c", script, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_folder_is_removed_when_the_process_that_held_it_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "work-1"
    folder.mkdir()
    (folder / "state.pt").touch()
    (tmp_path / "other").mkdir()
    process = begun(HOLDER, folder)
    assert abandoned.remove_abandoned(tmp_path, "work-*") == []
    killed(process)
    assert abandoned.remove_abandoned(tmp_path, "work-*", own=folder) == []
    assert abandoned.remove_abandoned(tmp_path, "work-*") == [folder]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_files_of_which_a_kill_left_a_half_are_removed_from_a_run(tmp_path: Path) -> None:
    folder = tmp_path / checkpoint.STAGES / "align"
    checkpoint.save(folder, cast(Any, {"module": {"w": torch.zeros(1)}}))
    (tmp_path / ".env.partial").touch()
    for path in (tmp_path / checkpoint.WITHIN, folder / checkpoint.STATE):
        killed(begun(WRITER, path))
    assert len(list(tmp_path.rglob(".*.pt.*.partial"))) == 2
    recovery.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".env.partial",
        checkpoint.INFO,
        checkpoint.STATE,
    ]
    assert checkpoint.is_whole(folder)


def test_checkpoints_that_were_never_copied_are_removed_by_the_next_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray copies in a thread of the worker, which a kill ends too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reported: list[Path] = []
    monkeypatch.setattr(
        ray.train, "report", lambda *_, checkpoint, **__: reported.append(checkpoint.path)
    )
    state = cast(Any, {"module": {"w": torch.zeros(1)}})
    worker._report("async", cast(Any, {}), state)
    (own,) = map(Path, reported)
    left = tmp_path / f"{worker._PREFIX}killed"
    checkpoint.save(left, state)
    worker._remove_abandoned()
    assert not left.exists()
    assert str(left) in caplog.text
    assert checkpoint.is_whole(own), "it is being copied"
    checkpoint.save(left, state)
    for file in own.iterdir():  # as Ray does when it has copied
        file.unlink()
    own.rmdir()
    worker._report("async", cast(Any, {}), state)
    assert list(worker._being_copied) == [Path(reported[1])]
    os.close(worker._being_copied.pop(Path(reported[1])))


@pytest.mark.parametrize("uri", ["{folder}", "s3://bucket/gallery"])
def test_interrupted_additions_are_removed_and_those_underway_are_not(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    uri = uri.format(folder=tmp_path)
    local, prefix = additions.underway(uri)
    with additions.held([local / f"{prefix}one"]), additions.held([local / f"{prefix}two"]):
        (local / f"{prefix}old").mkdir()
        (local / "descriptor.lance").mkdir()
        assert additions.remove_abandoned_additions(uri) == [local / f"{prefix}old"]
    assert len(additions.remove_abandoned_additions(uri)) == 2
    assert [path.name for path in local.iterdir()] == ["descriptor.lance"]


def test_where_nothing_was_left_nothing_is_removed(tmp_path: Path) -> None:
    assert abandoned.remove_partial(tmp_path, "*/") == []
    assert abandoned.remove_abandoned(tmp_path / "nowhere", "*") == []
