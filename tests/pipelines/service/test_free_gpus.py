"""A service asks Ray for GPUs only where they are free, or where it was told to wait for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")

from ray import serve

from pipelines.cluster import session
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.retrieval import devices
from pipelines.retrieval.devices import Place
from pipelines.service import deploy
from pipelines.service.deploy import running
from pipelines.service.plan import Settings


@pytest.fixture
def given_to_ray(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """What the encoders' deployment asks Ray for, of a service that is begun; no Ray is."""
    options: list[dict[str, Any]] = []
    config = make_config()

    def plan_of(settings: Settings) -> SimpleNamespace:
        return SimpleNamespace(settings=settings, config=config)

    def deployment(*, name: str, ray_actor_options: dict[str, Any], **given: object) -> Any:
        if name == "encoder":
            options.append(ray_actor_options)
        return lambda made: SimpleNamespace(bind=lambda *parts: None)

    for module, name, stand_in in (
        (deploy, "plan_of", plan_of),
        (deploy, "owned", lambda name: nullcontext()),
        (deploy, "_running_serve", lambda: None),
        (deploy, "_leave", lambda began: None),
        (session, "session", lambda config: nullcontext()),
        (serve, "deployment", deployment),
        (serve, "start", lambda http_options: None),
        (serve, "run", lambda app, name, route_prefix: None),
    ):
        monkeypatch.setattr(module, name, stand_in)
    return options


@pytest.mark.parametrize("free", [0, 2])
def test_encoders_take_a_gpu_where_there_is_one_for_each(
    given_to_ray: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    asked: list[dict[str, object]] = []

    def place(config: RunConfig, doing: str, **given: object) -> Place:
        asked.append(given)
        return Place(free, 4)

    monkeypatch.setattr(devices, "place", place)
    with running(Settings("gallery", min_replicas=2, max_replicas=3, gpu=None)):
        pass
    assert asked == [{"gpu": None, "at_least": 2, "at_most": 3}]
    assert given_to_ray == [{"num_gpus": 0.9 if free else 0.0, "num_cpus": 1}]


def test_without_room_nothing_is_begun(
    given_to_ray: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*given: object, **options: object) -> Place:
        raise UserError("no room")

    monkeypatch.setattr(devices, "place", none)
    with pytest.raises(UserError, match="no room"):
        running(Settings("gallery", gpu=True)).__enter__()
    assert not given_to_ray
