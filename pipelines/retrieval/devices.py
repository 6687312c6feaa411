"""What encoders run on: the GPUs that are free, or else CPU cores; said in one line.

An actor that asks for a GPU that others hold is not refused by Ray: it waits for ever. So what is
free decides, and a wait is one that was asked for, is said, and has a limit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.cluster import capacity, machine, nodes
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.runs.console import say

_ON_CPU: Mapping[str, float] = {"CPU": 1.0}
_ON_GPU: Mapping[str, float] = {"CPU": 1.0, "GPU": capacity.GPU_SHARE}


@dataclass(frozen=True)
class Place:
    """What is free for encoders.

    Attributes:
        gpus: encoders that have a GPU each; 0 where they run on CPU cores.
        cores: CPU cores that are free.
    """

    gpus: int
    cores: int

    @property
    def gpu_share(self) -> float:
        """What each encoder reserves of a GPU."""
        return capacity.GPU_SHARE if self.gpus else 0.0

    @property
    def device(self) -> str | None:
        """None for the GPU that is reserved: Ray does not hide GPUs from who reserves none."""
        return None if self.gpus else "cpu"


def place(
    config: RunConfig,
    doing: str,
    *,
    gpu: bool | None,
    at_least: int = 1,
    at_most: int | None = None,
    beside: int = 0,
) -> Place:
    """Where encoders find room now, said in one line.

    Args:
        config: with the address of the connected cluster and the limit of a wait.
        doing: what they are for, as the line begins: "embedding".
        gpu: True waits for free GPUs, and for machines with some where they may be added; False
            takes none; None takes those that are free, and CPU cores where there are too few.
        at_least, at_most: encoders side by side; without a limit all that is free is taken.
        beside: CPU cores for other work.

    Raises:
        UserError: no GPU, or no room within `ray.wait_for_nodes_s`.
    """
    most, there = at_most or sys.maxsize, int(nodes.total("GPU"))
    if gpu:
        _await_gpus(config, at_least, beside)
    if gpu or (gpu is None and there and capacity.soon(lambda: _free_gpus(beside) >= at_least)):
        there, free = int(nodes.total("GPU")), max(at_least, _free_gpus(beside))
        taken = min(most, free)
        others = f" of {there}: no more have room now" if taken == free < there else ""
        say(f"{doing} on {_counted(taken, 'GPU')}{others}")
        return Place(taken, _free_cores())
    capacity.await_room(
        at_least + beside,
        _ON_CPU,
        config,
        what="CPU cores",
        remedy="the same command again once others have ended (`ray status`)",
    )
    cores = min(most, max(at_least, _free_cores()))
    if (config.ray.address or "local") == "local":  # our own Ray may count more than there are
        cores = max(at_least, min(cores, machine.cores()))
    say(f"{doing} on {_counted(cores, 'CPU core')}{_why_no_gpu(config, gpu, there)}")
    return Place(0, cores)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _why_no_gpu(config: RunConfig, gpu: bool | None, there: int) -> str:
    if gpu is False:
        return ""
    if there:
        return f": too few of {_counted(there, 'GPU')} have room now (--gpu waits)"
    if capacity.may_grow(config):
        return ": no machine with a GPU is up (--gpu asks for one and waits)"
    return ": no GPU is there"


def _await_gpus(config: RunConfig, count: int, beside: int) -> None:
    """Return once so many GPUs have room.

    Raises:
        UserError: there are not so many and nothing can add any, or they were not free in time.
    """
    grows, there = capacity.may_grow(config), int(nodes.total("GPU"))
    if there < count and not grows:
        raise UserError(
            f"--gpu: {_counted(count, 'GPU')} asked for, {there} there, and nothing can add "
            "machines: --cpu takes CPU cores"
        )

    def enough() -> bool:
        return _free_gpus(beside) >= count

    asks = grows and not capacity.soon(enough)
    capacity.wait_until(
        enough,
        lambda: capacity.freely(count, _ON_GPU, what="encoders"),
        config,
        lambda limit: (
            f"--gpu: others hold machines, {limit}: "
            f"{capacity.freely(count, _ON_GPU, what='encoders')}. --cpu takes CPU cores"
        ),
        asks=[{"GPU": 1.0}] * (there + count) if asks else [],  # beyond those that others hold
    )


def _free_gpus(beside: int) -> int:
    return min(capacity.free_room(_ON_GPU), _free_cores() - beside)


def _free_cores() -> int:
    return capacity.free_room(_ON_CPU)
