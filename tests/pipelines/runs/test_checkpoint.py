"""Checkpoints: equal content, equal hash; a damaged file is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipelines.errors import UserError
from pipelines.runs import checkpoint, recovery

STATE = {"progress": {"stage": "align", "epoch": 1}, "module": {"w": torch.arange(6.0).view(2, 3)}}


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE, {"written": 1.0})
    loaded = checkpoint.load(tmp_path)
    assert loaded["progress"] == STATE["progress"]
    assert torch.equal(loaded["module"]["w"], STATE["module"]["w"])


def test_hash_covers_content_and_not_facts_beside_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", STATE, {"written": 1.0})
    checkpoint.save(tmp_path / "b", STATE, {"written": 2.0})
    first, second = (checkpoint.content_hash(checkpoint.load(tmp_path / n)) for n in "ab")
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.arange(6.0).view(3, 2)},
        {"w": torch.arange(6.0, dtype=torch.float64).view(2, 3)},
        {"w": torch.arange(6.0).view(2, 3) + 1e-7},
        {"v": torch.arange(6.0).view(2, 3)},
    ],
    ids=["shape", "dtype", "value", "name"],
)
def test_hash_sees_every_difference(other: dict[str, torch.Tensor]) -> None:
    assert checkpoint.content_hash(STATE["module"]) != checkpoint.content_hash(other)


def test_hash_ignores_the_order_of_keys() -> None:
    assert checkpoint.content_hash({"a": 1, "b": 2}) == checkpoint.content_hash({"b": 2, "a": 1})


def test_damaged_file_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE, {})
    path = tmp_path / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        checkpoint.load(tmp_path)


def test_newest_checkpoint_of_a_run_is_found(tmp_path: Path) -> None:
    """Also in a copy, whose files have other times, beside a copy of an older one."""
    for age, name in ((10, "checkpoint_a"), (20, "checkpoint_b"), (30, "backup")):
        checkpoint.save(tmp_path / name, STATE, {"written": 100.0 - age})
    shutil.copytree(tmp_path / "backup", tmp_path / "newest of all")
    assert checkpoint.find(tmp_path).name == "checkpoint_a"
    assert checkpoint.find(tmp_path / "checkpoint_b").name == "checkpoint_b"


def test_a_copy_under_a_users_name_stays(tmp_path: Path) -> None:
    for number in range(3):
        progress = {"stage": "align", "epoch": number}
        recovery.keep(tmp_path, {**STATE, "progress": progress}, newest=1)
        if not number:
            shutil.copytree(tmp_path / "checkpoint_align_0000", tmp_path / "checkpoint_best")
    (tmp_path / "checkpoint_in_part").mkdir()
    recovery.tidy(tmp_path)
    remaining = {folder.name for folder in tmp_path.glob("checkpoint_*")}
    assert remaining == {"checkpoint_best", "checkpoint_in_part", "checkpoint_align_0002"}


def test_folder_without_checkpoint_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state\.pt"):
        checkpoint.find(tmp_path)


def test_a_folder_of_trials_names_the_runs_in_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "trial-03" / "checkpoint_a", STATE, {})
    with pytest.raises(UserError, match=r"it holds trial-03: name one"):
        checkpoint.find(tmp_path)
