"""Which command a cluster's service belongs to: a mark that dies with it, however it ends.

What Ray Serve runs outlives the command that began it, also one that was killed.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.errors import UserError

log = logging.getLogger(__name__)
_NAMESPACE = "crossreid-serve"  # whatever `ray.namespace` says: a cluster has one Ray Serve
_WAIT_S = 10.0  # Ray hears of a killed process a moment later
_POLL_S = 0.5
_ANSWER_S = 5.0


class Mark:
    """Lives as long as the command that serves.

    Args:
        owner: that command, in words.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def owner(self) -> str:
        """As it was given."""
        return self._owner


@contextmanager
def owned(name: str) -> Iterator[None]:
    """Be the one command that serves an application on the connected cluster, while the block runs.

    Raises:
        UserError: another one lives and does; names it.
    """
    mark = _taken(name)
    try:
        yield
    finally:
        ray.kill(mark)


def _taken(name: str) -> ActorHandle[Mark]:
    """The mark, once no other command has it."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            return _begin(name)
        except ActorAlreadyExistsError as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"this cluster serves {name} at / already, for {_owner_of(name)}, which this "
                    "service would replace: end that command, or serve on a Ray of its own (unset "
                    "RAY_ADDRESS)"
                ) from error
            time.sleep(_POLL_S)


def _begin(name: str) -> ActorHandle[Mark]:
    """The mark of this process.

    Raises:
        ActorAlreadyExistsError: another one has it.
    """
    node = ray.get_runtime_context().get_node_id()
    mark = _Mark.options(
        name=name,
        namespace=_NAMESPACE,
        lifetime="non_detached",  # it ends with this driver
        max_restarts=-1,  # and not before
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    ).remote(f"process {os.getpid()} on {socket.gethostname()}")
    # Ray's annotation also allows for the class itself
    return cast("ActorHandle[Mark]", mark)


def _owner_of(name: str) -> str:
    """Who has the mark, in words."""
    try:
        mark: ActorHandle[Mark] = ray.get_actor(name, namespace=_NAMESPACE)
        answer: ray.ObjectRef[str] = mark.owner.remote()
        return ray.get(answer, timeout=_ANSWER_S)
    except (ValueError, RayActorError, GetTimeoutError) as error:
        log.debug("the mark of %s does not answer: %s", name, error)
        return "a command that does not say where it runs"


_Mark = ray.remote(num_cpus=0)(Mark)
