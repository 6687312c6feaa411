"""docs/cluster.md, steps 2 and 3, word for word on loopback: token, head, worker, run, job."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from reid_core.datasets import synthetic
from tests.pipelines.cluster.machines import Machine, end, ray_start, wait_for
from tests.pipelines.processes import free_port

FEW = [
    "cclnet.image_to_text=0",
    "cclnet.align.epochs=1",
    "cclnet.align.batches_per_epoch=3",
    "evaluation.start=false",
]

pytestmark = [pytest.mark.slow, pytest.mark.night, pytest.mark.ray]


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
            *ray_start("--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=3"),
            f"--temp-dir={scratch / 'r'}",
        )
    ]
    try:
        wait_for(lambda: head.run("ray", "status", f"--address=127.0.0.1:{gcs}").returncode == 0)
        started.append(worker.start(*ray_start(f"--address=127.0.0.1:{gcs}", "--num-cpus=2")))
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
        for process in reversed(started):
            end(process)


def active_nodes(machine: Machine, address: str) -> str:
    """Says 2 where two nodes are alive."""
    code = (
        f"import ray; ray.init(address='{address}', log_to_driver=False);"
        "print('', sum(n['Alive'] for n in ray.nodes()), '')"
    )
    return machine.run(sys.executable, "-c", code).stdout
