"""Clustering has all cores, and on several machines finds what it finds on one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config.run import RunConfig
from pipelines.data.prepare import prepare
from pipelines.training import distributed_knn
from pipelines.training.job import Job
from reid_core.knn.search import nearest


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("halves", [False, True])
def test_number_of_searchers_changes_nothing(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, halves: bool
) -> None:
    monkeypatch.setattr(distributed_knn, "PIECE_BYTES", 4 * 16 * 700)  # eight pieces
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5000, 16))
    rows[1500:1600] = rows[:100]  # equal rows are searched once, wherever they stand
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    is_second = rng.random(5000) < 0.4 if halves else None
    here = nearest(features, 12, is_second=is_second)
    actors = [distributed_knn.SearcherActor.options(num_cpus=0).remote() for _ in range(4)]
    for number, takes_part in ((1, False), (1, True), (2, False), (4, True)):
        spread = distributed_knn.nearest_by(
            actors[:number], features, 12, is_second=is_second, takes_part=takes_part
        )
        np.testing.assert_array_equal(spread.rows, here.rows)
        np.testing.assert_array_equal(spread.similarity, here.similarity)


@pytest.mark.slow
@pytest.mark.ray
def test_a_searcher_that_dies_is_asked_again(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).standard_normal((3000, 16))
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    actors = [distributed_knn.SearcherActor.options(num_cpus=0).remote() for _ in range(2)]
    send, deaths = distributed_knn._send, []

    def send_and_kill(*call: Any) -> None:
        send(*call)
        if not deaths:
            deaths.append(actors[1])
            ray.kill(actors[1], no_restart=False)

    import ray

    monkeypatch.setattr(distributed_knn, "_send", send_and_kill)
    spread = distributed_knn.nearest_by(actors, features, 12)
    assert len(deaths) == 1
    np.testing.assert_array_equal(spread.rows, nearest(features, 12).rows)


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
    job = Job.of(config, prepared, tmp_path)
    with actor.bank_on_ray(job, prepared, use_gpu=False) as bank:
        result = ray.get(bank.__ray_call__.remote(threads))
    assert result == os.cpu_count()
