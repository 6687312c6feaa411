"""docs/cluster.md, steps 2 and 3, word for word on loopback: token, head, worker, run, job."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reid_core.datasets import synthetic

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[3]
FEW = [
    "cclnet.image_to_text=0",
    "cclnet.align.epochs=1",
    "cclnet.align.batches_per_epoch=3",
    "evaluation.start=false",
]

pytestmark = [pytest.mark.slow, pytest.mark.night, pytest.mark.ray]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


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


@pytest.fixture
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_token_head_worker_doctor_train_and_job(scratch: Path) -> None:
    """A worker without the token is refused, with it everything on the page works."""
    gcs, dashboard = free_port(), free_port()
    token = {"RAY_AUTH_MODE": "token"}
    head, worker, stranger = (
        Machine(scratch / name, mode)
        for name, mode in (("h", token), ("w", token), ("s", {"RAY_AUTH_MODE": "disabled"}))
    )
    for machine in (head, worker, stranger):
        machine.home.mkdir()
    made = head.run("ray", "get-auth-token", "--generate")
    assert made.returncode == 0, made.stderr
    shutil.copytree(head.home / ".ray", worker.home / ".ray")
    synthetic.write(scratch / "set", num_identities=20, seed=5)
    started = [
        head.start(
            "ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}",
            "--num-cpus=3", "--object-store-memory=200000000", f"--temp-dir={scratch / 'r'}",
        )
    ]  # fmt: skip
    try:
        wait_for(lambda: head.run("ray", "status", f"--address=127.0.0.1:{gcs}").returncode == 0)
        started.append(
            worker.start(
                "ray", "start", "--block", f"--address=127.0.0.1:{gcs}", "--num-cpus=2",
                "--object-store-memory=200000000",
            )
        )  # fmt: skip
        address = f"127.0.0.1:{gcs}"
        wait_for(lambda: " 2 " in active_nodes(head, address))
        refused = stranger.run(
            "crossreid", "doctor", "--out", str(scratch / "runs"), "--address", address
        )
        assert refused.returncode == 1
        assert "token" in refused.stdout
        doctor = head.run(
            "crossreid", "doctor", "--out", str(scratch / "runs"), "--address", address
        )
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        common = ["demo.yaml", f"data.root={scratch / 'set'}", *FEW, "trainer.num_workers=2"]
        run = head.run(
            "crossreid", "train", *common, "--out", str(scratch / "runs" / "a"),
            f"ray.address={address}",
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        job = worker.run(
            "ray", "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--",
            "crossreid", "train", *common, "--out", str(scratch / "runs" / "b"),
        )  # fmt: skip
        assert job.returncode == 0, job.stdout + job.stderr
        assert all((scratch / "runs" / name / "summary.json").exists() for name in "ab")
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def active_nodes(machine: Machine, address: str) -> str:
    """Says 2 where two nodes are alive."""
    code = (
        f"import ray; ray.init(address='{address}', log_to_driver=False);"
        "print('', sum(n['Alive'] for n in ray.nodes()), '')"
    )
    return machine.run(sys.executable, "-c", code).stdout


def wait_for(done: Callable[[], bool], timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, "the cluster did not come up"
        time.sleep(1)
