"""Joining a Ray cluster, or starting one on this machine for the length of a command."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
import ray.data

from pipelines.cluster import capacity, join, machine, nodes, preflight
from pipelines.config.run import RunConfig
from pipelines.errors import UserError, end_on_signals

_MIN_SHARED_MEMORY = 256 * 2**20
_LONGEST_SOCKET = 107
_A_SOCKET = "/ray/session_2026-11-27_04-34-31_123456_1234567/sockets/plasma_store"


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
        _check_temporary_folder()
        _start(config)
    else:
        _join(address, config)
    end_on_signals()  # Ray has put a handler of its own in the way
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, config: RunConfig) -> None:
    """A cluster that runs already.

    Raises:
        UserError: it does not answer in time, or refuses.
    """
    address = join.resolve(address)
    join.require_answer(address, timeout_s=config.ray.join_timeout_s)
    try:
        ray.init(
            address=address,
            namespace=config.ray.namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises many classes here, none of them for users
        raise UserError(
            f"the cluster at ray.address={address} answers, but joining it failed: {error}\n"
            "`ray status` shows its state; Python, Ray and the token (RAY_AUTH_MODE) must be the "
            "same here and there"
        ) from error


def _start(config: RunConfig) -> None:
    """A Ray of our own.

    Raises:
        UserError: it did not come up; what may be in its way.
    """
    try:
        ray.init(
            address="local",
            namespace=config.ray.namespace,
            num_cpus=_logical_cpus(config),
            include_dashboard=False,
            # more than /dev/shm holds would go through the disk, without a word
            object_store_memory=machine.object_store_bytes(
                machine.memory_bytes(), machine.shared_memory_bytes()
            ),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises this very class where a node is late
        free = shutil.disk_usage(tempfile.gettempdir()).free
        load = psutil.getloadavg()[0] / machine.cores()
        raise UserError(
            f"Ray did not start on this machine: {error}\n"
            f"- {load:.1f} programs per core want to run, and Ray gives a node 30 s to come up: "
            "above 1, end some or try again\n"
            f"- {tempfile.gettempdir()}, where Ray writes, has {free / 2**30:.1f} GiB free: below "
            "1 GiB, free some\n"
            "- `ray status` shows a Ray that runs already: join it with ray.address=auto, or end "
            "it with `ray stop`"
        ) from error


def uses_gpu(config: RunConfig) -> bool:
    """As the configuration says, or else whether the connected cluster has one: see `nodes.has`."""
    use_gpu = config.trainer.use_gpu
    return nodes.has("GPU") if use_gpu is None else use_gpu


def _logical_cpus(config: RunConfig) -> int:
    """Workers reserve their CPUs for the whole run; the data stream needs some beside them."""
    reserved = config.trainer.num_workers * config.trainer.cpus_per_worker
    return max(machine.cores(), reserved + 2)


def _check_shared_memory() -> None:
    if not machine.SHARED_MEMORY.exists():
        return
    free = shutil.disk_usage(machine.SHARED_MEMORY).free
    if free < _MIN_SHARED_MEMORY:
        raise UserError(
            f"{machine.SHARED_MEMORY} has {free / 2**20:.0f} MiB free, Ray's object store "
            f"needs at least {_MIN_SHARED_MEMORY / 2**20:.0f} MiB: free it, or give the "
            "container more: `crossreid doctor` says how much"
        )


def _check_temporary_folder() -> None:
    """Ray's sockets lie in it, and the system cuts the path of a socket.

    Raises:
        UserError: it is too long.
    """
    name = next((key for key in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(key)), "")
    folder = os.environ.get(name) or tempfile.gettempdir()
    longest = _LONGEST_SOCKET - len(_A_SOCKET)
    if len(os.fsencode(folder)) > longest:
        raise UserError(
            f"{name or 'the temporary folder'}={folder} is too long for Ray's sockets, which lie "
            f"in it: at most {longest} characters; export RAY_TMPDIR=/tmp"
        )


def _quiet() -> None:
    """One line per epoch is progress; Ray's own bars and banners are not."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


@contextmanager
def session_of_run(config: RunConfig, run_dir: Path) -> Iterator[None]:
    """Ray, on a cluster that can hold the run; all its nodes see the run directory and the data.

    Raises:
        UserError: see `session`, `preflight.require_lasting_place`, `capacity.require`,
            `preflight.require_shared`, `preflight.require_data`.
    """
    with session(config):
        preflight.require_lasting_place()
        capacity.require(config)
        preflight.require_shared(run_dir)
        preflight.require_data([config.data.root, *config.data.extra_roots])
        yield
