"""Processes of this machine that take part in one computation, over gloo."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def join_group(rank: int, world: int, port: int, *, minutes: int) -> None:
    """Make this process one of `world`, which wait for one another no longer than `minutes`."""
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=minutes),
    )
