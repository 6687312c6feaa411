"""A run that a cluster can never hold is refused; one that may come is waited for, aloud."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.state import state
from ray.autoscaler.v2.schema import ClusterStatus, NodeInfo

from pipelines.cluster import capacity, nodes, session
from pipelines.config.run import RunConfig
from pipelines.errors import UserError

Make = Callable[..., RunConfig]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Resources of the one machine that stands in for a cluster, to be changed by the test."""
    resources = {"CPU": 4.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    machine = {"NodeID": "one", "Alive": True, "Resources": resources}
    monkeypatch.setattr(ray, "nodes", lambda: [machine])
    monkeypatch.setattr(state, "get_draining_nodes", dict)
    monkeypatch.setattr(state, "available_resources_per_node", lambda: {"one": resources})
    return resources


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are said and end within a second."""
    for name, seconds in (("SAY_EVERY_S", 0.01), ("_SETTLE_S", 0.05), ("_POLL_S", 0.02)):
        monkeypatch.setattr(capacity, name, seconds)


def test_gpus_are_refused_where_there_are_none(
    make_config: Make, cluster: dict[str, float]
) -> None:
    with pytest.raises(UserError, match=r"0 of 2 workers.*4 CPUs, 0 GPUs.*trainer\.use_gpu=false"):
        capacity.require(make_config("trainer.use_gpu=true"))


def test_more_workers_than_gpus(make_config: Make, cluster: dict[str, float]) -> None:
    cluster["GPU"] = 1
    with pytest.raises(UserError, match=r"1 of 2 workers.*4 CPUs, 1 GPUs.*trainer\.num_workers"):
        capacity.require(make_config())
    capacity.require(make_config("trainer.use_gpu=false"))
    capacity.require(make_config("trainer.min_workers=1"))


def test_the_key_that_asked_for_too_much_is_named(
    make_config: Make, cluster: dict[str, float]
) -> None:
    with pytest.raises(UserError, match=r"^trainer\.min_workers=1 ask.*workers \(trainer\.min_w"):
        capacity.require(make_config("trainer.use_gpu=true", "trainer.min_workers=1"))


def test_a_worker_is_on_one_machine(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sum would do, and Ray would wait for ever; so would one on a machine that goes."""
    sizes = {"small": (True, 1.0), "large": (True, 3.0), "dead": (False, 3.0), "going": (True, 3.0)}
    machines = [
        {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus}}
        for name, (alive, cpus) in sizes.items()
    ]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 7.0})
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    monkeypatch.setattr(state, "get_draining_nodes", lambda: {"going": 0})
    monkeypatch.setattr(
        state, "available_resources_per_node", lambda: {name: {"CPU": 3.0} for name in sizes}
    )
    wide = "trainer.cpus_per_worker=2"
    said = r"1 of 2 workers of 2 CPUs \(machines: 1 CPUs; 3 CPUs\), beside 1 being taken away"
    with pytest.raises(UserError, match=said):
        capacity.require(make_config(wide, "trainer.num_workers=2"))
    capacity.require(make_config(wide, "trainer.num_workers=1"))


def test_gpus_that_are_being_taken_away_make_no_run_on_cpus(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of the notice, before another machine has come: the run is one for GPUs all the same."""
    machines = [
        {"NodeID": "head", "Alive": True, "Resources": {"CPU": 8.0}},
        {"NodeID": "spot", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    monkeypatch.setattr(state, "get_draining_nodes", lambda: {"spot": 0})
    monkeypatch.setattr(state, "available_resources_per_node", lambda: {"head": {"CPU": 8.0}})
    assert session.uses_gpu(make_config())
    assert nodes.total("GPU") == 0
    with pytest.raises(UserError, match=r"0 of 2 workers of 1 CPUs and 1 GPUs.*1 being taken away"):
        capacity.require(make_config())
    capacity.require(make_config("trainer.use_gpu=false"))
    machines[1]["Alive"] = False
    assert not session.uses_gpu(make_config())
    capacity.require(make_config())


def test_machines_that_may_come_are_waited_for_and_then_refused(
    make_config: Make,
    cluster: dict[str, float],
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(capacity, "may_grow", lambda config: True)
    monkeypatch.setattr(capacity, "request_resources", lambda bundles: asked.append(bundles))
    config = make_config("trainer.use_gpu=true", "ray.wait_for_nodes_s=0.2")
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"wait_for_nodes_s=0\.2"):
        capacity.require(config)
    assert "room for 0 of 2 workers" in caplog.text
    assert len(asked) > 2, "Ray keeps one request of all commands: it is made at every look"
    assert all(one == [{"CPU": 1.0, "GPU": 1.0}] * 2 for one in asked[:-1])
    assert asked[-1] == [], "the request is taken back"


class TestWhatOthersHold:
    """Two GPUs on one machine; Ray counts their shares together."""

    @pytest.fixture(autouse=True)
    def two_gpus(
        self, cluster: dict[str, float], quick: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster["GPU"] = 2
        self.free = {"CPU": 4.0, "GPU": 2.0}
        monkeypatch.setattr(state, "available_resources_per_node", lambda: {"one": self.free})

    @pytest.mark.parametrize(
        ("free", "room"),
        [(2.0, 2), (1.98, 2), (1.1, 1), (1.09, 1), (1.0, 1), (0.2, 0), (0.0, 0)],
        ids=["none", "two searchers", "a worker", "and a searcher", "whole", "workers", "all"],
    )
    def test_a_gpu_with_a_searcher_is_free_and_two_rests_are_none(
        self, free: float, room: int
    ) -> None:
        self.free["GPU"] = free
        assert capacity.free_room({"CPU": 1.0, "GPU": capacity.GPU_SHARE}) == room

    def test_rests_of_many_gpus_are_not_one(self, cluster: dict[str, float]) -> None:
        cluster["GPU"] = 10
        for free, room in ((1.0, 0), (1.9, 1), (9.09, 9), (10.0, 10)):
            self.free = self.free | {"CPU": 20.0, "GPU": free}
            assert capacity.free_room({"CPU": 1.0, "GPU": capacity.GPU_SHARE}) == room

    def test_machines_that_are_too_small_are_not_waited_for(self, make_config: Make) -> None:
        with pytest.raises(UserError, match="too small, and nothing can add any: room for 2 of 5"):
            capacity.await_room(5, {"GPU": 1.0}, make_config(), what="things", remedy="")

    def test_it_is_waited_for_aloud_and_not_longer_than_a_limit(
        self, make_config: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.free["GPU"] = 1.1
        said = "room for 1 of 2 workers: 2 CPUs and 2 GPUs asked, 4 CPUs and 1 GPUs free"
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(UserError, match=rf"after ray.wait_for_nodes_s=0\.2: {said}.*same comm"),
        ):
            capacity.require(make_config("ray.wait_for_nodes_s=0.2"))
        assert "waiting for machines since 0 s: " + said in caplog.text
        capacity.require(make_config("trainer.min_workers=1"))
        capacity.require(make_config("trainer.use_gpu=false"))

    def test_the_run_begins_as_soon_as_they_give_it_back(
        self, make_config: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.free["GPU"] = 0.2
        looks: list[float] = []

        def ends_after_three(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                self.free["GPU"] = 2.0

        monkeypatch.setattr(time, "sleep", ends_after_three)
        capacity.require(make_config())
        assert len(looks) == 3

    def test_what_was_given_back_just_now_is_no_reason_for_words(
        self, make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(capacity, "SAY_EVERY_S", 30.0)
        monkeypatch.setattr(time, "sleep", lambda seconds: self.free.update(GPU=2.0))
        for grows in (False, True):
            self.free["GPU"] = 0.2
            monkeypatch.setattr(capacity, "may_grow", lambda config, grows=grows: grows)
            capacity.require(make_config())
        assert not caplog.records

    def test_where_machines_may_be_added_the_workers_are_what_asks_for_them(
        self, make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(capacity, "may_grow", lambda config: True)
        self.free["GPU"] = 0.2
        capacity.require(make_config())
        assert "others hold machines: room for 0 of 2 workers" in caplog.text


KINDS = pytest.mark.parametrize(
    ("kinds", "coming", "grows"),
    [
        (["node_12ab"], 0, False),
        (["head", "gpu_worker"], 0, True),
        (["local.cluster.node"], 0, False),
        (["local.cluster.node"], 1, True),
    ],
    ids=["by hand", "a cloud", "one's own", "one's own, which start"],
)


def says_first(monkeypatch: pytest.MonkeyPatch, busy: str, kinds: list[str], coming: int) -> None:
    """As the first autoscaler writes it, into Ray's store."""
    report = {busy: dict.fromkeys(kinds, 1), "pending_nodes": [["ip", "kind", "up"]] * coming}
    status = json.dumps({"autoscaler_report": report})
    monkeypatch.setattr(capacity, "is_autoscaler_v2", lambda: False)
    monkeypatch.setattr(capacity, "_internal_kv_get", lambda key: status.encode())


def says_second(monkeypatch: pytest.MonkeyPatch, busy: str, kinds: list[str], coming: int) -> None:
    """That of `ray up` is asked; the first one's text is not written."""
    there: Any = [NodeInfo("", kind, "", "") for kind in kinds]
    pending: Any = [NodeInfo("", "kind", "", "")] * coming
    status = ClusterStatus(**{busy: there}, pending_nodes=pending)
    monkeypatch.setattr(capacity, "is_autoscaler_v2", lambda: True)
    monkeypatch.setattr(capacity, "_internal_kv_get", lambda key: None)
    monkeypatch.setattr(capacity, "get_cluster_status", lambda address: status)
    context = SimpleNamespace(gcs_address="one:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)


@KINDS
@pytest.mark.parametrize("busy", ["active_nodes", "idle_nodes"])
@pytest.mark.parametrize("autoscaler", [says_first, says_second])
def test_a_launchers_file_is_what_adds_machines(
    make_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    kinds: list[str],
    coming: int,
    grows: bool,
    busy: str,
    autoscaler: Callable[..., None],
) -> None:
    autoscaler(monkeypatch, busy, kinds, coming)
    monkeypatch.setattr(capacity, "_internal_kv_initialized", lambda: True)
    assert capacity.may_grow(make_config("ray.address=auto")) is grows
    assert not capacity.may_grow(make_config()), "a Ray of our own"


@pytest.mark.slow
@pytest.mark.ray
def test_what_is_free_is_what_nobody_has_reserved(local_ray: None) -> None:
    """Of the four CPUs of the node; Ray tells of it a moment later, and leaves out what is zero."""
    node = ray.get_runtime_context().get_node_id()

    def settles(expected: float) -> bool:
        end = time.monotonic() + 30
        while nodes.free("CPU").get(node, 0) != expected and time.monotonic() < end:
            time.sleep(0.1)
        return nodes.free("CPU").get(node, 0) == expected

    class Nothing:
        pass

    holder: Any = ray.remote(Nothing)
    assert settles(4)
    holders = []
    for cpus, left in ((0.01, 3.99), (3.99, 0)):
        holders.append(holder.options(num_cpus=cpus).remote())
        assert settles(left)
    for one in holders:
        ray.kill(one)
    assert settles(4)
