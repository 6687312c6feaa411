"""What decides between the epochs of a job."""

from __future__ import annotations

from pathlib import Path

from pipelines.training.epoch_maker import EpochMaker, epoch_maker_of
from pipelines.training.job import Job
from pipelines.training.memory_bank import MemoryBank
from pipelines.training.planner import Planner
from tests.pipelines import small_runs


def _made(method: str, trees: Path, run_dir: Path) -> EpochMaker:
    config = small_runs.make_config(method, trees)
    prepared = small_runs.prepare_data(config)
    return epoch_maker_of(Job.of(config, prepared, run_dir), prepared)()


def test_a_method_that_reads_no_features_is_planned_for_alone(trees: Path, tmp_path: Path) -> None:
    assert isinstance(_made("cclnet", trees, tmp_path), MemoryBank)
    assert isinstance(_made("csdn", trees, tmp_path), Planner)
