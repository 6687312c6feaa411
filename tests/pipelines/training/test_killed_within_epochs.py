"""A command that is killed or asked to end within epochs, given again: the undisturbed run's state.

Processes of their own, without Ray; `benchmarks/spot.py` does the same to workers on Ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs import checkpoint, runlog
from reid_core.datasets import synthetic

pytestmark = [pytest.mark.slow, pytest.mark.night]
LIVES = (9, 4) * 3  # steps of a process before it is killed; an epoch has six
SMALL = [
    "cclnet.prepare.epochs=3",
    "cclnet.prompts.epochs=1",
    "cclnet.align.epochs=5",
    "cclnet.prompts.batch_size=32",
    "cclnet.clustering.k1=8",
    "cclnet.clustering.min_samples=2",
    "cclnet.prepare.batches_per_epoch=6",
    "cclnet.prepare.clusters_per_batch=4",
    "cclnet.align.batches_per_epoch=6",
    "cclnet.align.clusters_per_batch=4",
    "model.height=32",
    "model.width=16",
    "evaluation.start=false",
    "trainer.checkpoint_every=0.001",
]
# Trains in this process; its life ends with the given step, 0 for none.
SCRIPT = """
import functools, os, signal, sys
import pipelines
from pipelines import cli
from torch.optim.optimizer import register_optimizer_step_pre_hook

life, steps = int(sys.argv.pop(1)), 0

def before_step(*_):
    global steps
    steps += 1
    if life and steps > life:
        os.kill(os.getpid(), signal.SIGKILL)

register_optimizer_step_pre_hook(before_step)
pipelines.train = functools.partial(pipelines.train, backend="local")
cli.main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spot")
    synthetic.write(root / "sysu", num_identities=10, seed=4, layout="sysu", height=32)
    return root


@pytest.fixture(scope="module", params=["crossreid-small", "crossreid-small-vit"])
def settings(request: pytest.FixtureRequest, data: Path) -> list[str]:
    """Of both kinds of encoder."""
    return [f"data.root={data / 'sysu'}", f"model.name={request.param}", *SMALL]


def command(run_dir: Path, settings: list[str], life: int) -> list[str]:
    """`crossreid train` of a small run whose state is kept after every step."""
    train = ["train", "demo.yaml", "--out", str(run_dir), *settings]
    return [sys.executable, "-c", SCRIPT, str(life), *train]


def end(run_dir: Path, settings: list[str], life: int = 0) -> int:
    line = command(run_dir, settings, life)
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode


def facts(run_dir: Path) -> dict[str, Any]:
    newest = checkpoint.load(checkpoint.find(run_dir))
    names = ("stage", "epoch", "losses", "labels")
    log = [{k: line.get(k) for k in names} for line in runlog.read_metrics(run_dir)]
    return {"hash": checkpoint.content_hash(newest), "log": log}


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    end(run_dir, settings)
    return facts(run_dir)


def test_six_kills_within_epochs(
    settings: list[str], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """After one and a half epochs and after two thirds of one, which no process lives through."""
    run_dir = tmp_path / "run"
    for life in LIVES:
        assert end(run_dir, settings, life) == -signal.SIGKILL
        assert (run_dir / checkpoint.WITHIN).exists()
    assert end(run_dir, settings) == 0
    assert facts(run_dir) == undisturbed
    assert not (run_dir / checkpoint.WITHIN).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step(
    settings: list[str], undisturbed: dict[str, Any], tmp_path: Path, number: int
) -> None:
    run_dir = tmp_path / "run"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command(run_dir, settings, 0), **pipes) as process:
        while not (run_dir / checkpoint.WITHIN).exists() and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "the same command goes on from there" in said.splitlines()[-1]
    assert checkpoint.load_file(run_dir / checkpoint.WITHIN)["within"]["batch"] > 0
    assert end(run_dir, settings) == 0
    assert facts(run_dir) == undisturbed


def test_workers_on_ray_are_killed_and_asked_to_end(tmp_path: Path) -> None:
    """The script asserts equal hashes and logs, six kills and the exit code."""
    script = [sys.executable, "-m", "benchmarks.spot", "--out", str(tmp_path / "spot.json")]
    root = Path(__file__).parents[3]
    done = subprocess.run(script, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
