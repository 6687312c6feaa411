"""Joining a cluster within a stated time, or saying what stood in the way.

`ray.init` waits a quarter of an hour for an address at which nothing answers, and then names a
culprit of its own. So the address is asked first: does anything listen, and is it Ray.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from pipelines.errors import UserError

_PAUSE_S = 0.5
_MIN_ASK_S = 5.0  # a process that imports Ray takes two seconds
_ASK = """
import sys
from ray._raylet import GcsClient
import ray._private.services as services
GcsClient(address=services.canonicalize_bootstrap_address(sys.argv[1])).internal_kv_keys(b"")
"""


def resolve(address: str) -> str:
    """Host and port of the cluster that a setting means.

    Args:
        address: "auto" or host:port.

    Raises:
        UserError: no cluster is known here, or the address is of another kind.
    """
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"ray.address={address} is a dashboard: submit the command to it with "
            f"`ray job submit --address {address} -- crossreid ...`, or give host:port of the head"
        )
    if address.startswith("ray://"):
        raise UserError(
            f"ray.address={address} is a remote driver, which training does not survive: run the "
            "command as a job (`ray job submit`), or on a machine of the cluster with "
            "ray.address=auto"
        )
    if address != "auto":
        _host_and_port(address)
        return address
    known = os.environ.get("RAY_ADDRESS", "")
    if known == "local":
        raise UserError(
            "ray.address=auto, but RAY_ADDRESS=local, which wants a Ray of its own: unset "
            "RAY_ADDRESS, or use ray.address=local"
        )
    if known in ("", "auto"):
        known = _begun_here()
    if not known:
        raise UserError(
            "ray.address=auto, but no Ray runs on this machine: start one with `ray start --head` "
            "(`ray start --address HEAD:6379` joins another), or use ray.address=local; one that "
            "was started with another RAY_TMPDIR, TMPDIR or --temp-dir is joined by its host:port"
        )
    return resolve(known)


def _begun_here() -> str:
    """What `ray start` began on this machine, by Ray's own note; "" for nothing."""
    from ray._private.utils import read_ray_address  # absent where a run trains in one process

    try:
        return read_ray_address() or ""
    except OSError:  # it was somebody else's, or has just gone
        return ""


def require_answer(address: str, *, timeout_s: float) -> None:
    """Return once Ray answers at an address.

    Args:
        address: host:port, see `resolve`.
        timeout_s: longest wait, in seconds.

    Raises:
        UserError: nobody answers in that time, or somebody who is not Ray, or Ray refuses.
    """
    began = time.monotonic()
    while (problem := _refused(address)) is not None:
        if time.monotonic() - began > timeout_s:
            raise UserError(
                f"no Ray cluster answers at ray.address={address}"
                f"{_set_by(address)} within ray.join_timeout_s={timeout_s:g}: {problem}\n"
                "start one with `ray start --head`, use ray.address=local, or unset RAY_ADDRESS; "
                "a firewall between the machines must let Ray's ports through"
            )
        time.sleep(min(_PAUSE_S, timeout_s))
    rest = max(_MIN_ASK_S, timeout_s - (time.monotonic() - began))
    _ask(address, rest)


def _ask(address: str, timeout_s: float) -> None:
    command = [sys.executable, "-c", _ASK, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"something listens at ray.address={address}{_set_by(address)}, but it did not answer "
            f"as Ray's head within {timeout_s:.0f} s: the port of a head is 6379 unless "
            "`ray start --port` says another; 8265 is its dashboard"
        ) from error
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it said nothing"
    if "uthenticat" in done.stderr or "token" in done.stderr:
        raise UserError(
            f"the cluster at ray.address={address} asks for a token that this process does not "
            "present: set RAY_AUTH_MODE=token and put the cluster's ~/.ray/auth_token here too "
            f"(or into RAY_AUTH_TOKEN)\nRay says: {said}"
        )
    raise UserError(f"the cluster at ray.address={address} refuses to be joined: {said}")


def _refused(address: str) -> str | None:
    """Why no connection is made, or None where one is."""
    try:
        socket.create_connection(_host_and_port(address), timeout=2).close()
    except OSError as error:
        return str(error.strerror or error)
    return None


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"ray.address={address}: give auto, local, or host:port such as head:6379")
    return host.strip("[]"), int(port)


def _set_by(address: str) -> str:
    return " (from RAY_ADDRESS)" if os.environ.get("RAY_ADDRESS") == address else ""
