"""Machines that are processes: homes, ports and Ray nodes of their own on this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.pipelines.processes import free_port

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[3]


def ray_start(*options: str) -> tuple[str, ...]:
    """A node with ports of its own: on Ray's own ones another Ray of this machine may listen."""
    ports = (
        f"--{kind}-port={free_port()}"
        for kind in ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
    )
    return ("ray", "start", "--block", "--object-store-memory=200000000", *ports, *options)


@dataclass
class Machine:
    """A home of its own, as another computer would have."""

    home: Path
    variables: dict[str, str]

    def run(self, *command: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.environment(),
            cwd=self.home,
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.home / "ray.log").open("wb")
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=self.environment(), start_new_session=True
        )

    def environment(self) -> dict[str, str]:
        known = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return (
            known | {"HOME": str(self.home), "PATH": path, "PYTHONPATH": str(ROOT)} | self.variables
        )


def wait_for(done: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(1)


def end(process: subprocess.Popen[bytes]) -> None:
    """By a signal, or, where that is not heard, by force."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
