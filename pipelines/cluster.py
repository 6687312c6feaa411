"""Joining a Ray cluster, or starting one on this machine for the length of a command."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data

from pipelines.config import RunConfig
from pipelines.errors import UserError

_SHARED_MEMORY = Path("/dev/shm")
_MIN_SHARED_MEMORY = 256 * 2**20


@contextmanager
def session(config: RunConfig) -> Iterator[None]:
    """Ray for one command: a cluster that was running before goes on running afterwards."""
    if ray.is_initialized():
        yield
        return
    address = config.ray.address or "local"
    _quiet()
    if address == "local":
        _check_shared_memory()
        ray.init(
            address="local",
            namespace=config.ray.namespace,
            num_cpus=_logical_cpus(config),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    else:
        try:
            ray.init(
                address=address,
                namespace=config.ray.namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster answers at ray.address={address}: start one with "
                "`ray start --head`, or use ray.address=local"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def num_gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def _logical_cpus(config: RunConfig) -> int:
    """Workers reserve their CPUs for the whole run; the data stream needs some beside them."""
    reserved = config.trainer.num_workers * config.trainer.cpus_per_worker
    return max(os.cpu_count() or 1, reserved + 2)


def _check_shared_memory() -> None:
    if not _SHARED_MEMORY.exists():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < _MIN_SHARED_MEMORY:
        raise UserError(
            f"{_SHARED_MEMORY} has {free / 2**20:.0f} MiB free, Ray's object store needs at least "
            f"{_MIN_SHARED_MEMORY / 2**20:.0f} MiB: free it, or give the container more "
            "(docker run --shm-size=8g)"
        )


def _quiet() -> None:
    """One line per epoch is progress; Ray's own bars and banners are not."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
