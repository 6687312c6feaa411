"""Encoders take what is free and say so; nothing waits that was not asked to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
import ray
from ray._private.state import state

from pipelines.cluster import capacity, machine
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.retrieval.devices import Place, place

SHARE = capacity.GPU_SHARE


class Cluster:
    """Machines of eight cores, with some GPUs and what is free of both."""

    def __init__(self) -> None:
        self.machines: list[tuple[int, float, float]] = []
        self.asked: list[int] = []

    def nodes(self) -> list[dict[str, object]]:
        return [
            {"NodeID": str(i), "Alive": True, "Resources": {"CPU": 8.0, "GPU": float(gpus)}}
            for i, (gpus, _, _) in enumerate(self.machines)
        ]

    def free(self) -> dict[str, dict[str, float]]:
        return {
            str(i): {"GPU": gpus, "CPU": cpus} for i, (_, gpus, cpus) in enumerate(self.machines)
        }


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    result = Cluster()
    monkeypatch.setattr(ray, "nodes", result.nodes)
    monkeypatch.setattr(state, "get_draining_nodes", dict)
    monkeypatch.setattr(state, "available_resources_per_node", result.free)
    monkeypatch.setattr(capacity, "may_grow", lambda config: False)
    monkeypatch.setattr(
        capacity, "request_resources", lambda bundles: result.asked.append(len(bundles))
    )
    for name, seconds in (("SAY_EVERY_S", 0.01), ("_SETTLE_S", 0.02), ("_POLL_S", 0.01)):
        monkeypatch.setattr(capacity, name, seconds)
    return result


@pytest.fixture
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config("ray.address=auto", "ray.wait_for_nodes_s=0.2")


@pytest.mark.parametrize(
    ("machines", "expected", "said"),
    [
        ([(0, 0, 8)], Place(0, 8), "8 CPU cores: no GPU is there"),
        ([(2, 2, 8), (1, 1, 8)], Place(3, 16), "3 GPUs"),
        # beside a searcher of a bank there is room, beside a worker there is none
        ([(2, 1.09, 6)], Place(1, 6), "1 GPU of 2: no more have room now"),
        ([(2, 0.2, 4)], Place(0, 4), "4 CPU cores: too few of 2 GPUs have room now (--gpu waits)"),
        # one core is for the task that lists
        ([(4, 4, 3)], Place(2, 3), "2 GPUs of 4: no more have room now"),
        ([(0, 0, 2.5)], Place(0, 2), "2 CPU cores: no GPU is there"),
    ],
)
def test_what_is_free_decides(
    cluster: Cluster,
    config: RunConfig,
    capsys: pytest.CaptureFixture[str],
    machines: list[tuple[int, float, float]],
    expected: Place,
    said: str,
) -> None:
    cluster.machines = machines
    assert place(config, "embedding", gpu=None, beside=1) == expected
    assert capsys.readouterr().out == f"embedding on {said}\n"
    assert expected.gpu_share == (SHARE if expected.gpus else 0)


def test_what_is_asked_for_is_taken(
    cluster: Cluster, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.machines = [(4, 4, 8)]
    assert place(config, "serving", gpu=False, at_least=2, at_most=3) == Place(0, 3)
    assert place(config, "serving", gpu=None, at_least=2, at_most=3) == Place(3, 8)
    assert place(config, "serving", gpu=None, at_least=5, at_most=5) == Place(0, 5)
    assert place(config, "serving", gpu=True, at_least=4, at_most=4).gpus == 4
    assert capsys.readouterr().out.splitlines() == [
        "serving on 3 CPU cores",
        "serving on 3 GPUs",
        "serving on 5 CPU cores: too few of 4 GPUs have room now (--gpu waits)",
        "serving on 4 GPUs",
    ]


def test_our_own_ray_may_count_more_cores_than_there_are(
    cluster: Cluster, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given two for the data stream beside the workers, see `session`."""
    cluster.machines = [(0, 0, 8)]
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert place(make_config(), "embedding", gpu=None) == Place(0, 2)


def test_gpus_are_waited_for_aloud_and_not_longer_than_a_limit(
    cluster: Cluster, config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.machines = [(1, 0.1, 8)]
    room = "room for 0 of 1 encoders: 1 CPUs and 1 GPUs asked, 8 CPUs and 0 GPUs free"
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match=rf"wait_for_nodes_s=0\.2: {room}.*--cpu takes"),
    ):
        place(config, "embedding", gpu=True)
    assert f"waiting for machines since 0 s: {room}" in caplog.text
    assert not cluster.asked
    with pytest.raises(UserError, match="2 GPUs asked for, 1 there, and nothing can add"):
        place(config, "serving", gpu=True, at_least=2)


@pytest.mark.parametrize("machines", [[], [(1, 0.1, 8)]], ids=["none is up", "others hold it"])
def test_an_autoscaler_is_asked_for_one_and_then_no_longer(
    cluster: Cluster,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    machines: list[tuple[int, float, float]],
) -> None:
    monkeypatch.setattr(capacity, "may_grow", lambda config: True)
    cluster.machines = [(0, 0, 8), *machines]
    assert place(config, "embedding", gpu=None).gpus == 0
    assert "--gpu" in capsys.readouterr().out
    assert not cluster.asked, "it was not asked for"
    slept: list[float] = []

    def comes(seconds: float) -> None:
        slept.append(seconds)
        if cluster.asked and len(cluster.machines) == 1 + len(machines):
            cluster.machines.append((1, 1, 8))

    now = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(now) / 100)
    monkeypatch.setattr(time, "sleep", comes)
    assert place(config, "embedding", gpu=True).gpus == 1
    assert cluster.asked == [len(machines) + 1, 0]


def test_without_a_core_there_is_a_limit_too(cluster: Cluster, config: RunConfig) -> None:
    cluster.machines = [(0, 0, 1)]
    with pytest.raises(UserError, match=r"room for 1 of 2 CPU cores: 2 CPUs asked, 1 CPUs free"):
        place(config, "embedding", gpu=None, beside=1)
