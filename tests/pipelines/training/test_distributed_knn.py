"""Clustering has all cores, and on several machines finds what it finds on one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.state import state

from pipelines.cluster.machine import cores
from pipelines.config.run import RunConfig
from pipelines.data.prepare import prepare
from pipelines.training import actor, distributed_knn
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

    def threads(actor: Any) -> int:
        import torch

        return torch.get_num_threads()

    config = make_config()
    prepared = prepare(config, lambda inputs, modality: [])
    job = Job.of(config, prepared, tmp_path)
    with actor.bank_on_ray(job, prepared, use_gpu=False) as bank:
        result = ray.get(bank.__ray_call__.remote(threads))
    assert result == cores()


HERE = "0a" * 28  # Ray looks at the form of its ids


def _node(name: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": f"at-{name}", "Resources": resources}


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Three nodes with two GPUs each, this one among them; by name what is unreserved."""
    unreserved = {name: {"GPU": 2.0} for name in (HERE, "one", "two")}
    nodes = [_node(name, CPU=8.0, GPU=2.0) for name in unreserved]
    here = SimpleNamespace(get_node_id=lambda: HERE)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(distributed_knn, "usable", lambda: nodes)
    monkeypatch.setattr(state, "available_resources_per_node", lambda: unreserved)
    return unreserved


def test_no_searcher_waits_for_a_gpu_that_others_hold(
    machines: dict[str, dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    search = distributed_knn.SearchOnNodes(True, takes_part=True)
    machines["one"] = {"GPU": 8 - 7 * 1.0 - 0.9}  # all but one of eight runs search there
    del machines["two"]["GPU"]  # Ray leaves out what is zero
    for _ in range(2):
        assert [node["NodeID"] for node in search._others()] == ["one"]
    assert caplog.messages == ["at-two finds no neighbors: its GPUs are taken by other work"]
    machines["two"]["GPU"] = 1.0
    assert [node["NodeID"] for node in search._others()] == ["one", "two"]


@pytest.mark.parametrize(("unreserved", "device"), [(0.1, "cuda"), (0.0, "cpu")])
def test_the_bank_stays_on_the_cpu_where_others_hold_the_gpus(
    machines: dict[str, dict[str, float]],
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    unreserved: float,
    device: str,
) -> None:
    config = make_config()
    prepared = prepare(config, lambda inputs, modality: [])
    caplog.clear()
    machines[HERE] = {"GPU": unreserved}
    job = Job.of(config, prepared, tmp_path)
    made: Any = actor._placed(job, prepared, use_gpu=True)
    options, make = made
    assert make.keywords["device"].type == device
    assert options.get("num_gpus") == (distributed_knn.SEARCHER_SHARE if unreserved else None)
    assert make.keywords["search"]._takes_part is bool(unreserved)
    assert ("its memory bank stays on the CPU" in caplog.text) is not bool(unreserved)


@pytest.mark.slow
@pytest.mark.ray
def test_a_searcher_that_finds_no_room_is_not_waited_for_and_used_once_it_has(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It asks for all four CPUs of the node, one of which somebody holds."""
    rows = np.random.default_rng(0).standard_normal((3000, 16))
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    here = ray.get_runtime_context().get_node_id()
    of_four, shared = distributed_knn.SearcherActor, list[int]()
    wide = SimpleNamespace(options=lambda **given: of_four.options(**given | {"num_cpus": 4}))
    monkeypatch.setattr(distributed_knn, "SearcherActor", wide)
    monkeypatch.setattr(distributed_knn, "_WORTH_SPREADING", 0)
    monkeypatch.setattr(distributed_knn, "_READY_S", 3.0)
    by = distributed_knn.nearest_by
    monkeypatch.setattr(
        distributed_knn, "nearest_by", lambda s, *a, **b: (shared.append(len(s)), by(s, *a, **b))[1]
    )
    search = distributed_knn.SearchOnNodes(False, takes_part=True)
    monkeypatch.setattr(search, "_others", lambda: [_node(here, CPU=1.0)])
    holder: Any = of_four.options(num_cpus=1).remote()
    ray.get(holder.ready.remote())
    expected = nearest(features, 12).rows
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(search(features, 12).rows, expected)
    (said,) = caplog.messages
    assert said.endswith("finds no neighbors: no searcher has started within 3 s")
    assert not shared
    ray.kill(holder)
    ray.get(search._searchers[here].ready, timeout=60)
    np.testing.assert_array_equal(search(features, 12).rows, expected)
    assert shared == [1]
