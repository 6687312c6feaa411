"""Clustering has all cores, and on several machines finds what it finds on one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config import RunConfig
from pipelines.data.prepare import prepare
from pipelines.training import distributed_knn
from pipelines.training.distributed_knn import nearest_in_tasks
from pipelines.training.job import Job
from reid_core.knn.search import nearest


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("tasks", [1, 3])
def test_number_of_tasks_changes_nothing(local_ray: None, tasks: int) -> None:
    import ray

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 16))
    rows[1500:1600] = rows[:100]  # equal rows are searched once, wherever they stand
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    here = nearest(features, 12)
    spread = nearest_in_tasks(features, 12, [ray.nodes()[0]["NodeID"]] * tasks)
    np.testing.assert_array_equal(spread.rows, here.rows)
    np.testing.assert_array_equal(spread.similarity, here.similarity)
    is_second = np.arange(3000) % 3 == 0
    here = nearest(features, 12, is_second=is_second)
    nodes = [ray.nodes()[0]["NodeID"]] * tasks
    spread = nearest_in_tasks(features, 12, nodes, is_second=is_second)
    np.testing.assert_array_equal(spread.rows, here.rows)
    np.testing.assert_array_equal(spread.similarity, here.similarity)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("halves", [False, True])
def test_number_of_searchers_changes_nothing(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, halves: bool
) -> None:
    monkeypatch.setattr(distributed_knn, "_WORTH_SPREADING", 100)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5000, 16))
    rows[1500:1600] = rows[:100]
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    is_second = rng.random(5000) < 0.4 if halves else None
    here = nearest(features, 12, is_second=is_second)
    options = {"num_cpus": 0}
    actors = [distributed_knn._SearcherActor.options(**options).remote() for _ in range(4)]
    for number in (1, 2, 4):
        spread = distributed_knn.nearest_by_searchers(
            actors[:number], features, 12, is_second=is_second
        )
        np.testing.assert_array_equal(spread.rows, here.rows)
        np.testing.assert_array_equal(spread.similarity, here.similarity)


@pytest.mark.slow
@pytest.mark.ray
def test_the_memory_actor_has_all_cores(
    local_ray: None, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Ray gives one thread to whoever reserves no CPU."""
    import ray

    from pipelines.training import actor

    def threads(actor: Any) -> int:
        import torch

        return torch.get_num_threads()

    config = make_config()
    prepared = prepare(config, lambda inputs, modality: [])
    bank = actor.start_bank(Job.of(config, prepared, tmp_path), prepared)
    found = ray.get(bank.__ray_call__.remote(threads))
    ray.kill(bank)
    assert found == os.cpu_count()
