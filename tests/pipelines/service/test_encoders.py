"""Encoders that are gone: requests are refused in time, and /health says so until one is back."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import httpx2 as httpx
import numpy as np
import pytest

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")

import ray
import torch
from fastapi.testclient import TestClient
from ray import serve

from pipelines.errors import UserError
from pipelines.retrieval.fill import add_vectors
from pipelines.retrieval.gallery import Facts, Gallery
from pipelines.retrieval.sources import Source
from pipelines.runs import checkpoint
from pipelines.service import encoders
from pipelines.service.app import build
from pipelines.service.deploy import running
from pipelines.service.desk import Desk, Input, UnavailableError
from pipelines.service.encoders import Encoders
from pipelines.service.plan import Settings, encoding_of, plan_of
from reid_core.types import Modality
from tests.pipelines.processes import free_port
from tests.pipelines.trained import draw_folder, embed_alone, save_run


def handle_of(answer: Callable[[], Any]) -> Any:
    """What asks a deployment for vectors."""
    return SimpleNamespace(embed=SimpleNamespace(remote=lambda asked: answer()))


def runs(monkeypatch: pytest.MonkeyPatch, **states: int) -> None:
    """Let Ray Serve say so many encoders are in a state."""
    said = "no checkpoint in /srv/runs/a"
    deployment = SimpleNamespace(replica_states=states, message=said)
    app = SimpleNamespace(deployments={encoders.NAME: deployment})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"us": app}))


def test_a_request_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Input("a man", Modality.TEXT)
    monkeypatch.setattr(encoders, "_ANSWER_S", 0.01)
    waits = Encoders(handle_of(lambda: asyncio.sleep(60)), "us")
    runs(monkeypatch, RUNNING=1)
    with pytest.raises(UnavailableError, match="ask again later"):
        asyncio.run(waits.embed(asked))
    runs(monkeypatch, STARTING=1)
    with pytest.raises(UnavailableError, match="no encoder runs") as refused:
        asyncio.run(waits.embed(asked))
    assert "/srv" in caplog.text
    assert "/srv" not in str(refused.value)

    def gone() -> None:
        raise RuntimeError("the controller of Serve is gone")

    monkeypatch.setattr(serve, "status", gone)
    with pytest.raises(UnavailableError, match="no encoder runs"):
        asyncio.run(waits.embed(asked))

    async def row() -> np.ndarray:
        return np.ones(3)

    assert asyncio.run(Encoders(handle_of(row), "us").embed(asked)).sum() == 3


def test_the_state_and_the_answer_say_that_it_is_the_server(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path, Facts("f", "descriptor", 4, "/run"))
    desk = Desk(gallery, calibrated=None, modalities=(Modality.TEXT,), size=(64, 32))
    troubles = [""]

    async def embed(asked: Input) -> np.ndarray:
        raise UnavailableError(troubles[0])

    async def trouble() -> str:
        return troubles[0]

    app = build(desk, embed, trouble=trouble, token="", max_bytes=2**20)
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    health = client.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    troubles[0] = "no encoder runs"
    health = client.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "no encoder runs"})
    answer = client.post("/search", data={"text": "a man"})
    assert (answer.status_code, answer.json()) == (503, {"detail": "no encoder runs"})


def test_additions_that_wait_for_a_writer_leave_room_for_other_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than all other requests have threads."""
    gallery = Gallery.create(tmp_path, Facts("f", "descriptor", 4, "/run"))
    desk = Desk(gallery, calibrated=None, modalities=(Modality.VISIBLE,), size=(64, 32))
    ended = threading.Event()

    def waits(*given: object, **options: object) -> None:
        ended.wait(60)
        raise UnavailableError("another addition")

    monkeypatch.setattr(desk, "add", waits)
    monkeypatch.setattr(desk, "pixels", lambda data: np.zeros((3, 64, 32), np.uint8))

    async def embed(asked: Input) -> np.ndarray:
        embedded.append(asked)
        return np.ones(4)

    embedded: list[Input] = []
    app = build(desk, embed, trouble=AsyncMock(return_value=""), token="", max_bytes=2**20)
    with (
        TestClient(app, base_url="http://127.0.0.1:8000") as client,
        ThreadPoolExecutor(51) as pool,
    ):
        posts = [
            pool.submit(client.post, "/images", files={"image": b"an image"}) for _ in range(50)
        ]
        try:
            while len(embedded) < 40:
                time.sleep(0.01)
            health = pool.submit(client.get, "/health").result(timeout=20)
            assert health.json() == {"status": "ok"}
        finally:
            ended.set()
        assert {post.result().status_code for post in posts} == {503}


def test_an_encoder_that_starts_again_has_the_weights_of_the_plan(tmp_path: Path) -> None:
    """The run was trained on meanwhile."""
    run, images = save_run(tmp_path / "run"), draw_folder(tmp_path / "im", visible=2, infrared=1)
    add_vectors(tmp_path / "gallery", embed_alone(run, Source(images), tmp_path / "vectors"))
    plan = plan_of(Settings(str(tmp_path / "gallery")))
    with pytest.raises(UserError, match=r"--prior 0\.1 needs a calibration"):
        plan_of(replace(plan.settings, prior=0.1))
    state = checkpoint.load(run / "checkpoint_0")
    state["module"] = {
        key: 2 * value if "conv" in key else value for key, value in state["module"].items()
    }
    checkpoint.save(run / "checkpoint_1", state, {})
    with pytest.raises(UserError, match="other weights"):
        plan_of(plan.settings)
    encoding_of(plan, torch.device("cpu"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_replica_whose_checkpoint_is_gone(local_ray: None, tmp_path: Path) -> None:
    run, images = save_run(tmp_path / "run"), draw_folder(tmp_path / "im", visible=2, infrared=1)
    add_vectors(tmp_path / "gallery", embed_alone(run, Source(images), tmp_path / "vectors"))
    port = free_port()
    settings = Settings(str(tmp_path / "gallery"), port=port)
    url = f"http://127.0.0.1:{port}"
    with running(settings, ray_address="auto"):
        assert httpx.get(f"{url}/health", timeout=30).status_code == 200
        shutil.rmtree(run)
        for one in ray.util.list_named_actors(all_namespaces=True):
            if "crossreid#encoder" in one["name"]:
                ray.kill(ray.get_actor(**one))
        end = time.monotonic() + 60
        while time.monotonic() < end:
            health = httpx.get(f"{url}/health", timeout=30)
            if health.status_code != 200:
                break
            time.sleep(0.2)
        assert health.json() == {"status": "no encoder runs: the log of the service says why"}
    serve.shutdown()
