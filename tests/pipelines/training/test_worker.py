"""What a process of the worker group tells Ray and the memory bank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
import ray.train
import torch
from ray.train import CheckpointUploadMode

from pipelines.distributed import collectives
from pipelines.runs import checkpoint
from pipelines.training import worker


@pytest.mark.parametrize("upload", ["async", "sync"])
def test_a_checkpoint_is_written_here_and_copied_as_the_settings_say(
    upload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []

    def report(line: object, **given: Any) -> None:
        assert checkpoint.is_whole(Path(given["checkpoint"].path)), "before Ray is told"
        reported.append(given)

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(worker, "_folder_to_copy", lambda: tmp_path)
    worker._report(upload, cast(Any, {}), cast(Any, {"module": {"w": torch.zeros(1)}}))
    (given,) = reported
    modes = {"async": CheckpointUploadMode.ASYNC, "sync": CheckpointUploadMode.SYNC}
    assert given["checkpoint_upload_mode"] is modes[upload]
    assert given["delete_local_checkpoint_after_upload"] is True


def test_workers_without_a_state_report_their_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(ray.train, "report", lambda *given: reported.append(given))
    worker._report("async", cast(Any, {"epoch": 3}), None)
    assert reported == [({"epoch": 3},)]


def test_workers_say_which_gpus_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(get_node_id=lambda: "a", get_accelerator_ids=lambda: {"GPU": ["1"]})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: own)
    others = [("b", ["7"]), ("b", ["2"]), ("c", [])]
    monkeypatch.setattr(collectives, "of_every_process", lambda given: [given, *others])
    assert worker._gpus_of_workers() == {"a": ["1"], "b": ["2", "7"], "c": []}
