"""A service comes back after a kill, and replaces none whose command lives."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")

import ray
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError

from pipelines.cluster import session
from pipelines.errors import UserError
from pipelines.service import deploy, owner
from pipelines.service.deploy import _require_place_in
from pipelines.service.plan import Settings

PORT = 8123


class Marks:
    """Stands in for the cluster's named actors: those of drivers that live."""

    def __init__(self) -> None:
        self.alive: dict[str, owner.Mark] = {}
        self.looks = 0
        self.dies_at = -1

    def begin(self, name: str) -> Any:
        self.looks += 1
        if self.looks == self.dies_at:
            self.alive.clear()
        if name in self.alive:
            raise ActorAlreadyExistsError(f"The name {name} is already taken")
        self.alive[name] = owner.Mark("process 12 on here")
        return self.alive[name]

    def kill(self, mark: Any) -> None:
        self.alive = {name: one for name, one in self.alive.items() if one is not mark}

    def get_actor(self, name: str, namespace: str) -> Any:
        mark = self.alive[name]
        return SimpleNamespace(owner=SimpleNamespace(remote=mark.owner))


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    result = Marks()
    monkeypatch.setattr(owner, "_begin", result.begin)
    monkeypatch.setattr(owner, "_WAIT_S", 0.05)
    monkeypatch.setattr(owner, "_POLL_S", 0.01)
    monkeypatch.setattr(ray, "kill", result.kill)
    monkeypatch.setattr(ray, "get_actor", result.get_actor)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    return result


def there(**prefixes: str | None) -> Any:
    return SimpleNamespace(
        http_options=SimpleNamespace(host="127.0.0.1", port=PORT),
        applications={k: SimpleNamespace(route_prefix=v) for k, v in prefixes.items()},
    )


def test_one_command_serves_at_a_time_and_the_second_is_told_of_the_first(marks: Marks) -> None:
    with owner.owned("crossreid"):
        said = r"serves crossreid at / already, for process 12 on here.*end that command"
        with pytest.raises(UserError, match=said), owner.owned("crossreid"):
            pass
        assert marks.looks > 2, "a killed one may only just have been heard of"
    with owner.owned("crossreid"):
        pass
    assert not marks.alive


def test_a_kill_that_is_heard_of_a_moment_later_is_waited_for(
    marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_WAIT_S", 60)
    marks.alive["crossreid"] = owner.Mark("process 3, killed")
    marks.dies_at = 4
    with owner.owned("crossreid"):
        assert marks.alive["crossreid"].owner() == "process 12 on here"


def test_a_mark_goes_where_serving_fails(marks: Marks) -> None:
    with pytest.raises(OSError, match="full"), owner.owned("crossreid"):
        raise OSError("full")
    assert not marks.alive


def test_an_owner_that_does_not_answer(marks: Marks, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(answer: str, timeout: float) -> str:
        raise GetTimeoutError("late")

    monkeypatch.setattr(ray, "get", late)
    with ExitStack() as stack:
        stack.enter_context(owner.owned("crossreid"))
        with pytest.raises(UserError, match="a command that does not say where it runs"):
            stack.enter_context(owner.owned("crossreid"))


@pytest.mark.parametrize("prefix", ["/", None])
def test_what_a_killed_command_left_is_replaced_aloud(
    caplog: pytest.LogCaptureFixture, prefix: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        _require_place_in(there(crossreid=prefix, theirs="/theirs"), Settings("g", port=PORT))
    assert "taking the place of a service whose command is gone" in caplog.text


@pytest.mark.parametrize(("name", "prefix"), [("theirs", "/"), ("crossreid", "/theirs")])
def test_what_others_serve_is_not_replaced(name: str, prefix: str) -> None:
    with pytest.raises(UserError, match=rf"serves {name} at {prefix} already.*serve\.delete"):
        _require_place_in(there(**{name: prefix}), Settings("g", port=PORT))


def test_nothing_is_looked_at_or_replaced_before_the_place_is_ours(
    marks: Marks, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    plan = SimpleNamespace(config=make_config())
    monkeypatch.setattr(deploy, "plan_of", lambda settings: plan)
    monkeypatch.setattr(session, "session", lambda config: ExitStack())
    monkeypatch.setattr(deploy, "_running_serve", lambda: looked.append("serve"))
    marks.alive["crossreid"] = owner.Mark("process 12 on here")
    with (
        pytest.raises(UserError, match="process 12"),
        deploy.running(Settings("g", port=PORT), ray_address="auto"),
    ):
        pass
    assert not looked
