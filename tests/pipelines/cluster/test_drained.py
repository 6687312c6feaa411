"""A machine that Ray knows will be taken away: its work is kept within the epoch, nobody failed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from pipelines.runs import checkpoint, runlog
from reid_core.datasets import synthetic
from tests.pipelines.cluster.machines import Machine, end, ray_start, wait_for
from tests.pipelines.processes import free_port

EPOCHS = 2
SETTINGS = [
    "cclnet.image_to_text=0",
    f"cclnet.align.epochs={EPOCHS}",
    "cclnet.align.batches_per_epoch=200",  # longer than the notice needs to arrive
    "evaluation.start=false",
    "trainer.num_workers=1",
    "trainer.cpus_per_worker=2",
    "trainer.checkpoint_every=0",  # within an epoch nothing is kept but for the notice
    "trainer.max_failures=0",
]

pytestmark = [pytest.mark.slow, pytest.mark.night, pytest.mark.ray]


def test_a_drained_machine_costs_no_step(scratch: Path) -> None:
    """The head has one CPU, so the worker trains on the other node; that one is drained and ended,
    another takes its place."""
    port, run_dir = free_port(), scratch / "runs" / "a"
    address = f"127.0.0.1:{port}"
    machine = Machine(scratch / "h", {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(scratch)})
    machine.home.mkdir()
    synthetic.write(scratch / "set", num_identities=20, seed=5)
    head = ray_start("--head", f"--port={port}", "--num-cpus=1")
    started = [machine.start(*head, f"--temp-dir={scratch / 'r'}", "--include-dashboard=false")]
    try:
        wait_for(lambda: len(alive(machine, address)) == 1)
        started.append(machine.start(*ray_start(f"--address={address}", "--num-cpus=3")))
        wait_for(lambda: len(alive(machine, address)) == 2)
        (taken,) = (node for node, cpus in alive(machine, address).items() if cpus == 3)
        train = machine.start(
            "crossreid", "train", "demo.yaml", f"data.root={scratch / 'set'}", *SETTINGS,
            f"ray.address={address}", "--out", str(run_dir),
        )  # fmt: skip
        started.append(train)
        wait_for(lambda: any(True for _ in runlog.read_metrics(run_dir)), 240)
        assert not (run_dir / checkpoint.WITHIN).exists()
        drained = machine.run(
            "ray", "drain-node", "--address", address, "--node-id", taken,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed",
            "--deadline-remaining-seconds", "120",
        )  # fmt: skip
        assert drained.returncode == 0, drained.stderr
        wait_for((run_dir / checkpoint.WITHIN).exists, 60)
        os.killpg(started[1].pid, signal.SIGKILL)
        started.append(machine.start(*ray_start(f"--address={address}", "--num-cpus=3")))
        assert train.wait(timeout=300) == 0
    finally:
        for process in reversed(started):
            end(process)
    assert len({line["epoch"] for line in runlog.read_metrics(run_dir)}) == EPOCHS
    assert not list(run_dir.glob("failures/*")), "a machine that is taken away is no failure"


def alive(machine: Machine, address: str) -> dict[str, int]:
    """Nodes that are alive and their CPUs; none while nothing answers."""
    code = (
        f"import ray; ray.init(address='{address}', log_to_driver=False);"
        "[print(n['NodeID'], int(n['Resources'].get('CPU', 0))) for n in ray.nodes() if n['Alive']]"
    )
    lines = machine.run(sys.executable, "-c", code).stdout.splitlines()
    parts = [line.split() for line in lines if len(line.split()) == 2]
    return {node: int(cpus) for node, cpus in parts if len(node) == 56 and cpus.isdecimal()}
