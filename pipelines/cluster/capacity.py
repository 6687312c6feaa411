"""Whether the cluster gives a run what it asks for, found before anything waits for it.

A placement group with more GPUs than a cluster has, or has free, is not an error to Ray: it waits
for ever. Where the machines are too few and nothing can add any, the run is refused; where an
autoscaler can, it is asked for them. That wait, and the one for what others hold, is said, line by
line, until a stated limit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler._private.local.config import LOCAL_CLUSTER_NODE_TYPE as _OF_A_LIST
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

from pipelines.cluster import nodes
from pipelines.config.run import RunConfig
from pipelines.errors import UserError

log = logging.getLogger(__name__)
GPU_SHARE = 0.9  # of what trains or embeds: two do not fit on a GPU, a searcher does
SAY_EVERY_S = 30.0
_SETTLE_S = 3.0  # what was just given back is seen as free a moment later
_POLL_S = 0.5
_NOTHING = 1e-6  # of a resource


def require(config: RunConfig) -> None:
    """Return once there is room for the workers of a run in the cluster that is connected.

    Where an autoscaler may add machines, what others hold is not waited for here, but warned of:
    the workers themselves are what asks for machines.

    Raises:
        UserError: there never will be, or was not in time; names what is asked for, what is there,
            and the remedy.
    """
    settings = config.trainer
    key = "trainer.num_workers" if settings.min_workers is None else "trainer.min_workers"
    workers = settings.num_workers if settings.min_workers is None else settings.min_workers
    use_gpu = nodes.has("GPU") if settings.use_gpu is None else settings.use_gpu
    bundle = asked_of(config, use_gpu)
    if not _fits(workers, bundle):
        if not may_grow(config):
            raise UserError(_too_small(key, workers, bundle, "and nothing can add machines to it"))
        wait_until(
            lambda: _fits(workers, bundle),
            lambda: compared(workers, bundle),
            config,
            lambda limit: _too_small(key, workers, bundle, limit),
            asks=[bundle] * workers,
        )
    share = share_of(config, use_gpu)
    if not may_grow(config):
        await_room(workers, share, config, what="workers", remedy=_REMEDY)
    elif not soon(lambda: free_room(share) >= workers):
        log.warning("others hold machines: %s", freely(workers, share))


_REMEDY = (
    "the same command goes on once others have ended; fewer workers (trainer.num_workers), or a "
    "longer ray.wait_for_nodes_s"
)


def await_room(
    count: int, share: Mapping[str, float], config: RunConfig, *, what: str, remedy: str
) -> None:
    """Return once the machines have room for so many at the same time; says what it waits for.

    Args:
        count: of what is to be placed.
        share: what one of them takes.
        config: with the limit.
        what: they are.
        remedy: what helps where there is no room in time.

    Raises:
        UserError: there never will be, or was not within `ray.wait_for_nodes_s`.
    """
    grows = may_grow(config)
    if not grows and room(share) < count:
        there = freely(count, share, what=what)
        raise UserError(f"the machines are too small, and nothing can add any: {there}")
    asks = grows and not soon(lambda: free_room(share) >= count)
    wait_until(
        lambda: free_room(share) >= count,
        lambda: freely(count, share, what=what),
        config,
        lambda limit: f"others hold machines, {limit}: {freely(count, share, what=what)}. {remedy}",
        asks=[share] * (room(share) + count) if asks else [],  # beyond what others hold
    )


def wait_until(
    enough: Callable[[], bool],
    lacking: Callable[[], str],
    config: RunConfig,
    too_long: Callable[[str], str],
    *,
    asks: Sequence[Mapping[str, float]] = (),
) -> None:
    """Return once there is enough; says what is waited for after some seconds, then every 30 s.

    Args:
        enough: whether there is.
        lacking: in words, what is asked for and what is there.
        config: with the limit.
        too_long: what the error says, of the limit in words.
        asks: what the autoscaler is asked for meanwhile, at every look: Ray keeps the last request
            alone, for the whole cluster, so that another command's takes the place of this one's.

    Raises:
        UserError: there was not within `ray.wait_for_nodes_s`, or nothing adds machines any more.
    """
    began = time.monotonic()
    say_at = began + min(_SETTLE_S, SAY_EVERY_S)
    limit = config.ray.wait_for_nodes_s
    try:
        while not enough():
            now = time.monotonic()
            if now - began > limit:
                raise UserError(too_long(f"after ray.wait_for_nodes_s={limit:g}"))
            if now >= say_at:
                say_at = now + SAY_EVERY_S
                log.warning("waiting for machines since %.0f s: %s", now - began, lacking())
            if asks and not may_grow(config) and not soon(enough):
                raise UserError(too_long("and nothing adds machines to it any more"))
            if asks:
                request_resources(bundles=[dict(bundle) for bundle in asks])
            time.sleep(_POLL_S)
    finally:
        if asks:
            request_resources(bundles=[])


def soon(enough: Callable[[], bool]) -> bool:
    """Whether there is enough, now or within some seconds, since what is free is known late."""
    until = time.monotonic() + _SETTLE_S
    while not (result := enough()) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return result


def may_grow(config: RunConfig) -> bool:
    """Whether an autoscaler may add machines; True too where Ray does not say."""
    if (config.ray.address or "local") == "local":
        return False
    machines = _machines()
    if machines is None:
        return True
    kinds, coming = machines
    # without a launcher's file Ray names each machine after its id; those of one's own are a list
    return coming or any(not kind.startswith(("node_", _OF_A_LIST)) for kind in kinds)


def _machines() -> tuple[set[str], bool] | None:
    """The kinds of the machines, and whether some are coming; None where Ray does not say."""
    if not _internal_kv_initialized():
        return None
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        there = (*status.active_nodes, *status.idle_nodes)
        coming = bool(status.pending_nodes or status.pending_launches)
        return {node.ray_node_type_name for node in there}, coming
    text = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)  # of the first autoscaler alone
    if not text:
        return None
    report = json.loads(text).get("autoscaler_report") or {}
    kinds = {kind for key in ("active_nodes", "idle_nodes") for kind in report.get(key) or {}}
    return kinds, bool(report.get("pending_nodes") or report.get("pending_launches"))


def asked_of(config: RunConfig, use_gpu: bool) -> dict[str, float]:
    """What one worker of a run takes of its machine."""
    bundle = {"CPU": float(config.trainer.cpus_per_worker)}
    return bundle | {"GPU": 1.0} if use_gpu else bundle


def share_of(config: RunConfig, use_gpu: bool) -> dict[str, float]:
    """What one worker of a run reserves of it."""
    bundle = {"CPU": float(config.trainer.cpus_per_worker)}
    return bundle | {"GPU": GPU_SHARE} if use_gpu else bundle


def _fits(workers: int, bundle: Mapping[str, float]) -> bool:
    return room(bundle) >= workers


def room(bundle: Mapping[str, float]) -> int:
    """Workers that the machines hold, each of which is on one of them."""
    return sum(
        int(min(node["Resources"].get(name, 0) // amount for name, amount in bundle.items()))
        for node in nodes.usable()
    )


def free_room(share: Mapping[str, float]) -> int:
    """As `room`, of what nobody has reserved.

    A share of a GPU lies on one GPU, and Ray tells what is free of all: each is counted as if it
    was taken by what trains or embeds, or by nothing but searchers.
    """
    free = {name: nodes.free(name) for name in share}

    def fits(node: Mapping[str, Any], name: str) -> int:
        left: float = free[name].get(node["NodeID"], 0) + _NOTHING
        if name == "GPU":
            beside: float = (1 - GPU_SHARE) * node["Resources"].get("GPU", 0)
            return max(0, ceil((left - beside) / GPU_SHARE - 2 * _NOTHING))
        return int(left // share[name])

    return sum(min(fits(node, name) for name in share) for node in nodes.usable())


def freely(count: int, share: Mapping[str, float], *, what: str = "workers") -> str:
    """In words, what some ask for and what is free of it."""
    asked = " and ".join(
        f"{count * (1 if name == 'GPU' else amount):g} {name}s" for name, amount in share.items()
    )
    free = " and ".join(f"{_whole(name):g} {name}s" for name in share)
    return f"room for {free_room(share)} of {count} {what}: {asked} asked, {free} free"


def _whole(name: str) -> int:
    """How many of a resource are free on all machines; of a GPU some may hold a small share."""
    return free_room({name: GPU_SHARE if name == "GPU" else 1.0})


def compared(workers: int, bundle: Mapping[str, float]) -> str:
    """In words, what workers ask for and what the machines have."""
    asked = " and ".join(f"{amount:g} {name}s" for name, amount in bundle.items())
    usable = nodes.usable()
    there = "; ".join(
        ", ".join(f"{node['Resources'].get(name, 0):g} {name}s" for name in bundle)
        for node in usable
    )
    leaving = len(nodes.alive()) - len(usable)
    beside = f", beside {leaving} being taken away" if leaving > 0 else ""
    return f"room for {room(bundle)} of {workers} workers of {asked} (machines: {there}){beside}"


def _too_small(key: str, workers: int, bundle: Mapping[str, float], why: str) -> str:
    gpus = "" if "GPU" not in bundle else " trainer.use_gpu=false trains on CPUs;"
    return (
        f"{key}={workers} ask for more than the cluster has, {why}: "
        f"{compared(workers, bundle)}.{gpus} fewer workers ({key}), or more machines"
    )
