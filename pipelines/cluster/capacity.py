"""Whether the cluster can ever give a run what it asks for, found before anything waits for it.

A placement group with more GPUs than a cluster has is not an error to Ray: it waits for ever. Where
nothing can add machines the run is refused; where an autoscaler can, it is asked for them, and the
wait is said, line by line, until a stated limit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping

from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.sdk import request_resources
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

from pipelines.cluster import nodes
from pipelines.config.run import RunConfig
from pipelines.errors import UserError

log = logging.getLogger(__name__)
_SAY_EVERY_S = 30.0
_POLL_S = 2.0


def require(config: RunConfig) -> None:
    """Return once the workers of a run fit into the cluster that is connected.

    Raises:
        UserError: they never will; names what is asked for, what is there, and the remedy.
    """
    settings = config.trainer
    workers = settings.num_workers if settings.min_workers is None else settings.min_workers
    use_gpu = nodes.has("GPU") if settings.use_gpu is None else settings.use_gpu
    bundle = asked_of(config, use_gpu)
    if _fits(workers, bundle):
        return
    if not may_grow(config):
        raise UserError(_too_small(workers, bundle, "and nothing can add machines to it"))
    began = said = time.monotonic()
    request_resources(bundles=[dict(bundle)] * workers)
    try:
        while not _fits(workers, bundle):
            now = time.monotonic()
            if now - began > config.ray.wait_for_nodes_s:
                limit = f"after ray.wait_for_nodes_s={config.ray.wait_for_nodes_s:g}"
                raise UserError(_too_small(workers, bundle, limit))
            if now - said >= _SAY_EVERY_S:
                said = now
                log.warning(
                    "waiting for machines since %.0f s: %s", now - began, compared(workers, bundle)
                )
            time.sleep(_POLL_S)
    finally:
        request_resources(bundles=[])


def may_grow(config: RunConfig) -> bool:
    """Whether an autoscaler may add machines; True too where Ray does not say."""
    if (config.ray.address or "local") == "local":
        return False
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS) if _internal_kv_initialized() else None
    if not status:
        return True
    kinds = (json.loads(status).get("autoscaler_report") or {}).get("active_nodes") or {}
    # without a launcher's file Ray names each machine after its id
    return any(not kind.startswith("node_") for kind in kinds)


def asked_of(config: RunConfig, use_gpu: bool) -> dict[str, float]:
    """What one worker of a run takes of its machine."""
    bundle = {"CPU": float(config.trainer.cpus_per_worker)}
    return bundle | {"GPU": 1.0} if use_gpu else bundle


def _fits(workers: int, bundle: Mapping[str, float]) -> bool:
    return room(bundle) >= workers


def room(bundle: Mapping[str, float]) -> int:
    """Workers that the machines hold, each of which is on one of them."""
    return sum(
        int(min(node["Resources"].get(name, 0) // amount for name, amount in bundle.items()))
        for node in nodes.usable()
    )


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


def _too_small(workers: int, bundle: Mapping[str, float], why: str) -> str:
    gpus = "" if "GPU" not in bundle else " trainer.use_gpu=false trains on CPUs;"
    return (
        f"trainer.num_workers={workers} ask for more than the cluster has, {why}: "
        f"{compared(workers, bundle)}.{gpus} fewer workers (trainer.num_workers), or more machines"
    )
