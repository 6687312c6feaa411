"""A cluster on which others serve: nothing of theirs is replaced or ended, no address made up."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")

import ray
from ray import serve

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.service import deploy
from pipelines.service.deploy import running
from pipelines.service.plan import Settings
from tests.pipelines.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.ray]
COMMAND = """
import sys, time
from types import SimpleNamespace
from pipelines.config import run as configuration
from pipelines.service import deploy
from pipelines.service.plan import Settings
from tests.pipelines.service.test_joined import Says

config = configuration.validate({"data": {"root": "unused"}}, source="test")
deploy.plan_of = lambda settings: SimpleNamespace(config=config)
deploy.application = lambda plan, num_gpus: Says.bind("the first")
with deploy.running(Settings("gallery", port=int(sys.argv[2])), ray_address=sys.argv[1]):
    print("serving", flush=True)
    time.sleep(600)
"""


class Word:
    """Answers with a word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self) -> str:
        return self.word


Says: Any = serve.deployment(ray_actor_options={"num_cpus": 0})(Word)


@pytest.fixture
def ours(
    local_ray: None, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """Serves "ours" at a port, on a Ray that this process has joined."""
    plan: Any = SimpleNamespace(config=make_config())
    monkeypatch.setattr(deploy, "plan_of", lambda settings: plan)
    monkeypatch.setattr(deploy, "application", lambda plan, num_gpus: Says.bind("ours"))
    yield lambda port: running(Settings("gallery", port=port), ray_address="auto")
    serve.shutdown()


def asked(port: int, path: str) -> str:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=30).text


def test_what_others_serve_goes_on_and_is_not_replaced(
    ours: Callable[[int], AbstractContextManager[None]],
) -> None:
    port, other = free_port(), free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Says.bind("theirs"), name="theirs", route_prefix="/theirs")
    with pytest.raises(UserError, match=rf"listens on 127\.0\.0\.1:{port}, not on 127\.0\.0\.1"):
        ours(other).__enter__()
    with ours(port):
        assert (asked(port, "/"), asked(port, "/theirs")) == ("ours", "theirs")
        with pytest.raises(UserError, match="serves crossreid at / already"):
            ours(port).__enter__()
        assert asked(port, "/") == "ours"
    assert asked(port, "/theirs") == "theirs"
    assert set(serve.status().applications) == {"theirs"}
    serve.run(Says.bind("first"), name="first", route_prefix="/")
    with pytest.raises(UserError, match="serves first at / already"):
        ours(port).__enter__()
    assert asked(port, "/") == "first"


def test_a_serve_that_was_begun_here_ends_unless_others_came(
    ours: Callable[[int], AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with ours(port):
        assert asked(port, "/") == "ours"
    assert deploy._running_serve() is None
    with ours(port):
        serve.run(Says.bind("theirs"), name="theirs", route_prefix="/theirs")
    assert asked(port, "/theirs") == "theirs"
    assert set(serve.status().applications) == {"theirs"}
    assert "Ray Serve goes on, since it serves theirs" in caplog.text


@pytest.mark.night
def test_a_command_that_was_killed_is_followed_by_the_next(
    ours: Callable[[int], AbstractContextManager[None]],
) -> None:
    port, address = free_port(), ray.get_runtime_context().gcs_address
    first = subprocess.Popen(
        [sys.executable, "-c", COMMAND, address, str(port)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert first.stdout is not None
        assert any("serving" in line for line in first.stdout)
        assert asked(port, "/") == "the first"
        with pytest.raises(UserError, match=f"for process {first.pid} on"):
            ours(port).__enter__()
        first.send_signal(signal.SIGKILL)
        first.wait()
        with ours(port):
            assert asked(port, "/") == "ours"
    finally:
        first.kill()
        first.wait()
