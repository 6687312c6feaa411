"""How many runs a cluster has room for at a time, and asking for machines where it may grow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray.autoscaler.sdk import request_resources

from pipelines.cluster import capacity, nodes
from pipelines.config.run import RunConfig
from pipelines.errors import UserError

log = logging.getLogger(__name__)
Limit = Callable[[int], int]
"""How many of so many runs to have under way; asked at every look."""


def slots(config: RunConfig, *, use_gpu: bool, requested: int) -> int:
    """Runs that can train side by side, settled once: the trials of a sweep.

    They need not wait for each other's resources, but where machines may be added. There all are
    begun: those that wait are what asks for them. Worker groups are placed whole or not at all and
    cannot block each other. What others hold is left out, but for one run, which waits for it and
    says so.

    Args:
        config: of a run.
        use_gpu: whether its workers take GPUs.
        requested: upper limit.

    Raises:
        UserError: not even one run fits.
    """
    if capacity.may_grow(config):
        return requested
    fitting = room(config, use_gpu=use_gpu)
    settings = config.trainer
    workers, bundle = settings.num_workers, capacity.asked_of(config, use_gpu)
    share, wanted = capacity.share_of(config, use_gpu), min(fitting, requested)
    if wanted > 1 and not capacity.soon(lambda: capacity.free_room(share) >= wanted * workers):
        free = max(1, min(wanted, capacity.free_room(share) // workers))
        there = capacity.freely(wanted * workers, share)
        log.warning("%d runs at a time instead of %d: %s", free, requested, there)
        return free
    if fitting >= requested:
        return requested
    there = capacity.compared(workers, bundle)
    if not use_gpu:
        there += "; each run takes one CPU beyond its workers, for images"
    if fitting == 0 and settings.min_workers and _room(settings.min_workers, bundle):
        fitting = 1  # with fewer workers than it asks for
    if fitting == 0:
        raise UserError(
            f"not one run fits: {there}: lower trainer.num_workers or trainer.cpus_per_worker, or "
            "add nodes"
        )
    log.warning("%d runs at a time instead of %d: %s", fitting, requested, there)
    return fitting


def room(config: RunConfig, *, use_gpu: bool) -> int:
    """Runs that the machines hold side by side.

    Images are decoded by tasks that reserve nothing, so a CPU run counts one core beyond its
    workers for them.
    """
    return _room(config.trainer.num_workers, capacity.asked_of(config, use_gpu))


def free_runs(config: RunConfig, *, use_gpu: bool) -> int:
    """Of `room`, as many as what nobody holds; where machines may be added, all."""
    fitting = room(config, use_gpu=use_gpu)
    if capacity.may_grow(config):
        return fitting
    free = capacity.free_room(capacity.share_of(config, use_gpu))
    return min(fitting, free // config.trainer.num_workers)


def _room(workers: int, bundle: Mapping[str, float]) -> int:
    fitting = capacity.room(bundle) // workers
    if "GPU" in bundle:
        return fitting
    return min(fitting, int(nodes.total("CPU") // (workers * bundle["CPU"] + 1)))


@contextmanager
def growing(config: RunConfig, *, use_gpu: bool) -> Iterator[Limit]:
    """As many runs as there is room for, at least one, on a cluster to which machines may be added.

    No run begins that would only wait: it would take what another gives back before that one has
    used it for its last steps. So an autoscaler is asked for machines here. Ray keeps a request
    beyond the life of who asked, and with it the machines: it is taken back once there is room, at
    the end of the block, and after `ray.wait_for_nodes_s`.

    Args:
        config: of a run.
        use_gpu: whether its workers take GPUs.
    """
    limit = _Growing(config, use_gpu)
    try:
        yield limit
    finally:
        limit.ask(0)


class _Growing:
    def __init__(self, config: RunConfig, use_gpu: bool) -> None:
        self._config, self._use_gpu = config, use_gpu
        self._until = time.monotonic() + config.ray.wait_for_nodes_s
        self._asked = 0

    def __call__(self, wanted: int) -> int:
        fitting = max(1, room(self._config, use_gpu=self._use_gpu))
        if fitting >= wanted:
            self.ask(0)
            return wanted
        if time.monotonic() < self._until:
            if not self._asked:
                self._say(fitting, wanted, "until machines are added")
            self.ask(wanted)
        elif self._asked:
            limit = f"ray.wait_for_nodes_s={self._config.ray.wait_for_nodes_s:g}"
            self._say(fitting, wanted, f"no more machines are asked for after {limit}")
            self.ask(0)
        return fitting

    def ask(self, runs: int) -> None:
        """Ask for what they need, again at every look: a run's own request takes its place."""
        if runs or self._asked:
            bundle = capacity.asked_of(self._config, self._use_gpu)
            one = [bundle] * self._config.trainer.num_workers
            if not self._use_gpu:
                one = [*one, {"CPU": 1.0}]  # for images
            request_resources(bundles=one * runs)
        self._asked = runs

    def _say(self, fitting: int, wanted: int, why: str) -> None:
        bundle = capacity.asked_of(self._config, self._use_gpu)
        there = capacity.compared(self._config.trainer.num_workers, bundle)
        log.warning("%d runs at a time instead of %d, %s: %s", fitting, wanted, why, there)
