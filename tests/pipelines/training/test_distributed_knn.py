"""Clustering has all cores, and on several machines finds what it finds on one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray._private.state import state

from pipelines.cluster.machine import cores
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.training import actor, distributed_knn, searcher_places
from pipelines.training.job import Job
from pipelines.training.searcher_places import SEARCHER_SHARE, Place
from reid_core.knn import screen
from reid_core.knn.search import nearest
from tests.core.knn.test_search import assert_same
from tests.core.rows import unit
from tests.pipelines import small_runs
from tests.pipelines.distributed.test_search_by_workers import stand_in_for_a_device


def become_devices(actors: Sequence[Any]) -> None:
    """Searchers take the branches for a device from here on, and count the screens they open."""

    def become(searcher: Any) -> None:
        opened = searcher.opened = list[int]()
        begin = screen.HalfScreen.__init__

        def counted(self: screen.HalfScreen, features: torch.Tensor) -> None:
            opened.append(len(features))
            begin(self, features)

        screen.HalfScreen.__init__ = counted
        stand_in_for_a_device()

    ray.get([actor.__ray_call__.remote(become) for actor in actors])


@pytest.mark.slow
@pytest.mark.ray
def test_number_of_searchers_changes_nothing_nor_does_what_they_search_on(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs, and as on devices beside this process, which takes part on its CPU."""
    monkeypatch.setattr(distributed_knn, "PIECE_BYTES", 4 * 16 * 700)  # eight pieces
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5000, 16))
    rows[1500:1600] = rows[:100]  # equal rows are searched once, wherever they stand
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    actors = [distributed_knn.SearcherActor.options(num_cpus=0).remote() for _ in range(4)]
    masks = None, rng.random(5000) < 0.4
    here = [nearest(features, 12, is_second=is_second) for is_second in masks]
    for on_device in (False, True):
        if on_device:
            become_devices(actors)
        for number, takes_part in ((1, False), (1, True), (2, False), (4, True)):
            for is_second, expected in zip(masks, here, strict=True):
                spread = distributed_knn.nearest_by(
                    actors[:number], features, 12, is_second=is_second, takes_part=takes_part
                )
                assert_same(spread, expected)
    assert all(ray.get([a.__ray_call__.remote(lambda s: len(s.opened)) for a in actors]))


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
def test_the_bank_searches_alone_where_a_gpu_has_no_room_for_the_rows(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(searcher: Any) -> None:
        def empty(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        torch.empty = empty  # in its process alone

    features, asked = unit(900), list[Any]()
    handles = [distributed_knn.SearcherActor.options(num_cpus=0).remote() for _ in range(2)]
    ray.get(handles[0].__ray_call__.remote(full))
    monkeypatch.setattr(distributed_knn, "_WORTH_SPREADING", 500)
    monkeypatch.setattr(
        distributed_knn.SearchOnNodes, "_ready", lambda *_: asked.append(1) or handles
    )
    search = distributed_knn.SearchOnNodes(False, takes_part=True)
    for _ in range(2):
        assert_same(search(features, 5), nearest(features, 5))
    assert len(asked) == 1  # not again
    assert ray.get(handles[1].__ray_call__.remote(lambda s: len(s._rows))) == 0  # let go of
    (warned,) = [x.getMessage() for x in caplog.records if x.name == distributed_knn.__name__]
    assert warned.startswith("a GPU has no room beside its worker for a search among 900 rows")
    with pytest.raises(UserError, match=r"900 rows.*leave the memory bank a GPU"):
        distributed_knn.SearchOnNodes(False, takes_part=False)(features, 5)


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
    prepared = small_runs.prepare_data(config)
    job = Job.of(config, prepared, tmp_path)
    with actor.bank_on_ray(job, prepared, use_gpu=False) as bank:
        result = ray.get(bank.__ray_call__.remote(threads))
    assert result == cores()


@pytest.mark.slow
@pytest.mark.ray
def test_the_bank_searches_beside_the_workers_that_open_it(
    local_ray: None, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config()
    prepared = small_runs.prepare_data(config)
    job = Job.of(config, prepared, tmp_path)
    with actor.bank_on_ray(job, prepared, use_gpu=True) as bank:
        actor.RemoteBank(bank, {HERE: ["0", "3"]}).open()
        workers = bank.__ray_call__.remote(lambda actor: actor._bank._known.search._workers)
        assert ray.get(workers) == {HERE: ["0", "3"]}


HERE = "0a" * 28  # Ray looks at the form of its ids


def _node(name: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": f"at-{name}", "Resources": resources}


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Three nodes with two GPUs each, this one among them; by name what is unreserved."""
    unreserved = {name: {"GPU": 2.0} for name in (HERE, "one", "two")}
    nodes = [_node(name, CPU=8.0, GPU=2.0) for name in unreserved]
    own = SimpleNamespace(get_node_id=lambda: HERE, get_accelerator_ids=lambda: {"GPU": ["1"]})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: own)
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
        assert [place.node for place in search._places()] == ["one"]
    assert caplog.messages == ["at-two finds no neighbors: its GPUs are taken by other work"]
    machines["two"]["GPU"] = 1.0
    assert [place.node for place in search._places()] == ["one", "two"]
    machines["one"] = {}  # its workers hold its GPUs, and wait
    search.beside({HERE: ["0", "1"], "one": ["0", "1"]})
    assert search._places() == [
        Place(HERE, "0"),
        Place("one", "0"),
        Place("one", "1"),
        Place("two"),
    ]


def test_there_is_a_searcher_beside_every_worker_and_one_on_every_other_node_with_gpus() -> None:
    nodes = [_node("a", CPU=64, GPU=8), _node("b", CPU=30, GPU=8), _node("c", CPU=9, GPU=4)]
    nodes += [_node("without", CPU=8)]
    workers = {"a": ["0", "1", "2", "3"], "b": ["5", "7"]}

    def planned(*own: str) -> list[tuple[str, str | None, int]]:
        places = searcher_places.on_gpus(nodes, own, workers)
        return [(place.node, place.gpu, place.cores) for place in places]

    others = [("b", "5", 15), ("b", "7", 15), ("c", None, 9)]
    assert planned("a", "2") == [("a", "0", 21), ("a", "1", 21), ("a", "3", 21), *others]
    assert planned("a", "6") == [*(("a", gpu, 16) for gpu in "0123"), *others]
    assert planned("without") == planned("a", "6")
    assert planned("c", "0") == [*(("a", gpu, 16) for gpu in "0123"), *others[:2]]
    assert searcher_places.on_cpus(nodes, "b") == [Place("a"), Place("c"), Place("without")]


@pytest.mark.slow
@pytest.mark.ray
def test_every_gpu_of_a_node_searches_while_its_workers_wait(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each searcher sees the GPU of its worker, of which Ray gives it nothing."""
    monkeypatch.setattr(distributed_knn, "_WORTH_GPUS", 3000)
    features, node = unit(3000), ray.get_runtime_context().get_node_id()
    expected = nearest(features, 12)
    search = distributed_knn.SearchOnNodes(True, takes_part=True)
    search.beside({node: ["0", "5"]})
    assert_same(search(features[:2999], 12), nearest(features[:2999], 12))
    assert not search._searchers, "they would not have their rows before this process had searched"
    assert_same(search(features, 12), expected)
    handles = [search._searchers[Place(node, gpu)].handle for gpu in ("0", "5")]
    visible = [handle.__ray_call__.remote(visible_gpus) for handle in handles]
    assert ray.get(visible) == ["0", "5"]
    search.beside({node: ["5"]})  # a group of workers came in the place of another
    assert_same(search(features, 12), expected)
    assert list(search._searchers) == [Place(node, "5")]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(handles[0].ready.remote())
    apart = distributed_knn.SearchOnNodes(True, takes_part=False)
    apart.beside({node: ["0", "5"]})
    assert_same(apart(features[:2999], 12), nearest(features[:2999], 12))
    assert list(apart._searchers) == [Place(node, "0")], "one GPU searches few rows"


def visible_gpus(_: object) -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


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
    prepared = small_runs.prepare_data(config)
    caplog.clear()
    machines[HERE] = {"GPU": unreserved}
    job = Job.of(config, prepared, tmp_path)
    made: Any = actor._placed(job, prepared, use_gpu=True)
    options, make, search = made
    assert make.keywords["device"].type == device
    assert options.get("num_gpus") == (SEARCHER_SHARE if unreserved else None)
    assert make.keywords["search"] is search
    assert search._takes_part is bool(unreserved)
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
    monkeypatch.setattr(distributed_knn, "_READY_S", -2.0)
    by = distributed_knn.nearest_by
    monkeypatch.setattr(
        distributed_knn, "nearest_by", lambda s, *a, **b: (shared.append(len(s)), by(s, *a, **b))[1]
    )
    search = distributed_knn.SearchOnNodes(False, takes_part=True)
    monkeypatch.setattr(search, "_places", lambda: [Place(here)])
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
    ray.get(search._searchers[Place(here)].ready, timeout=60)
    np.testing.assert_array_equal(search(features, 12).rows, expected)
    assert shared == [1]
