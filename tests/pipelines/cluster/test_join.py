"""Addresses at which no cluster answers end within the stated time, with the setting's name."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import join
from pipelines.commands.options import ray_address
from pipelines.errors import UserError


@pytest.fixture
def mute() -> Iterator[str]:
    """Something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        remaining: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    remaining.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_nobody_listens() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"ray\.address=127\.0\.0\.1:1 .*join_timeout_s=0\.5"):
        join.require_answer("127.0.0.1:1", timeout_s=0.5)
    assert time.monotonic() - began < 5


def test_the_variable_is_named_where_it_set_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert join.resolve("auto") == "127.0.0.1:1"
    with pytest.raises(UserError, match="from RAY_ADDRESS"):
        join.require_answer("127.0.0.1:1", timeout_s=0.1)


@pytest.mark.slow
def test_somebody_listens_who_is_not_ray(mute: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"8265 is its dashboard|refuses to be joined"):
        join.require_answer(mute, timeout_s=6)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://head:8265", "ray job submit --address http://head:8265"),
        ("ray://head:10001", "remote driver"),
        ("head", "host:port"),
        ("head:port", "host:port"),
        ("head:99999", "host:port"),
        (":6379", "host:port"),
    ],
)
def test_addresses_of_another_kind(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        join.resolve(address)


def test_no_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no Ray runs on this machine"):
        join.resolve("auto")


@pytest.mark.parametrize("given", [None, "", "auto"])
def test_a_cluster_is_found_where_ray_has_noted_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None
) -> None:
    """RAY_TMPDIR counts before TMPDIR; "auto" in the variable says no more than the setting."""
    for name, port in (("ray", 1), ("other", 2)):
        (tmp_path / name / "ray").mkdir(parents=True)
        (tmp_path / name / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}\n")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    assert join.resolve("auto") == "127.0.0.1:2"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    assert join.resolve("auto") == "127.0.0.1:1"


def test_a_variable_that_wants_a_ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard by what has no setting, and contradicts one that says auto."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_address() is None
    with pytest.raises(UserError, match=r"ray\.address=auto, but RAY_ADDRESS=local.*unset"):
        join.resolve("auto")
    for value in ("auto", "head:6379"):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert ray_address() == "auto"
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("RAY_ADDRESS")
        else:
            monkeypatch.setenv("RAY_ADDRESS", value)
        assert ray_address() is None
