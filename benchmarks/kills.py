"""Does a run that is killed end in the state of the undisturbed run? Eight kills, on a real Ray.

A small CCLNet run (all three stages, two workers) is repeated with a kill -9 of one of its
processes at a moment that the seed chooses. After a kill of the driver the same command is run
again, all other kills are Ray Train's to mend. The content hash of the last checkpoint must be that
of the undisturbed run. All runs use one cluster, which this script starts and ends.

    python benchmarks/kills.py [--seed 0] [--only "driver mid-epoch"] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import checkpoint, runlog
from pipelines import config as configuration
from reid_core.datasets import synthetic

STAGES = {"prepare": 1, "prompts": 2, "align": 2}
STREAMED = ("prepare", "align")
STEPS = 3
# who dies, when, and whether the command has to be given again
SCENARIOS = {
    "driver mid-epoch": ("driver", "step"),
    "driver while clustering": ("driver", "cluster"),
    "driver while a checkpoint is written": ("driver", "write"),
    "worker mid-epoch": ("worker", "step"),
    "worker while embedding": ("worker", "embed"),
    "worker while a checkpoint is written": ("worker", "write"),
    "memory actor while clustering": ("actor", "cluster"),
    "memory actor mid-epoch": ("actor", "step"),
}
LIMIT_S = 900


@dataclass(frozen=True)
class Strike:
    """One kill: who, where in the code, and when."""

    victim: str
    place: str
    stage: str
    epoch: int
    step: int
    rank: int


def choose(scenario: str, seed: int) -> Strike:
    """The seed's moment; only stages that stream have an actor to cluster and images to embed."""
    victim, place = SCENARIOS[scenario]
    rng = np.random.default_rng((seed, list(SCENARIOS).index(scenario)))
    anywhere = victim != "actor" and place in ("step", "write")
    stages = tuple(STAGES) if anywhere else STREAMED
    stage = stages[rng.integers(len(stages))]
    epoch = int(rng.integers(STAGES[stage]))
    rank = 0 if place == "write" else int(rng.integers(2))
    return Strike(victim, place, stage, epoch, int(rng.integers(1, STEPS)), rank)


# The run itself, in a process of its own ---------------------------------------------------------


def child(run_dir: Path, data: Path, strike: Strike | None, scratch: Path, address: str) -> None:
    """Train with the strike built in; it happens once, whoever runs this again."""
    from pipelines import train

    if strike is not None:
        arm(train, strike, os.getpid(), scratch)
    settings = [*overrides(data), f"ray.address={address}"]
    train.train(configuration.load(Path("demo.yaml"), settings), run_dir, sys.argv)


def overrides(data: Path) -> list[str]:
    """All three stages of the demo in a few steps."""
    images = [
        f"cclnet.{stage}.{key}={value}"
        for stage in STREAMED
        for key, value in {
            "epochs": STAGES[stage],
            "batches_per_epoch": STEPS,
            "clusters_per_batch": 4,
        }.items()
    ]
    return [
        *images,
        f"data.root={data}",
        "model.height=32",
        "model.width=16",
        f"cclnet.prompts.epochs={STAGES['prompts']}",
        "cclnet.prompts.batch_size=32",
        "cclnet.clustering.k1=8",
        "cclnet.clustering.min_samples=2",
        "evaluation.start=false",
        "trainer.num_workers=2",
        "trainer.batches_per_block=2",
        "trainer.max_failures=1",
    ]


def arm(train: Any, strike: Strike, driver: int, scratch: Path) -> None:
    """Put the strike into the processes that Ray starts; functions of this file travel by value."""
    import ray

    from pipelines.memory_bank import MemoryBank

    def hit() -> None:
        if strike.victim == "actor":
            pid = int((scratch / "actor").read_text())
        else:
            pid = driver if strike.victim == "driver" else os.getpid()
        (scratch / "struck").write_text(repr(time.time()))
        os.kill(pid, signal.SIGKILL)

    def due(stage: str, epoch: int) -> bool:
        return (stage, epoch) == (strike.stage, strike.epoch) and not (scratch / "struck").exists()

    class Bank(MemoryBank):
        """Writes down its process, and strikes while it clusters."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            (scratch / "actor").write_text(str(os.getpid()))

        def _labels(self, *args: Any) -> np.ndarray:
            if strike.place == "cluster" and self._key is not None and due(*self._key):
                hit()
                time.sleep(1)
            return super()._labels(*args)

    work = train._work

    def armed_work(settings: dict[str, Any]) -> None:
        if (scratch / "struck").exists() and not (scratch / "back").exists():
            (scratch / "back").write_text(repr(time.time()))
        arm_worker(strike, hit, due)
        work(settings)

    train._MemoryBankActor = ray.remote(num_cpus=0)(Bank)
    train._work = armed_work


def arm_worker(strike: Strike, hit: Callable[[], None], due: Callable[[str, int], bool]) -> None:
    """Strike in a worker's step, embedding or checkpoint."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from pipelines import checkpoint, collectives
    from pipelines.loop import TrainingLoop

    now: dict[str, Any] = {"stage": "", "epoch": -1, "step": 0, "embedded": 0}
    seed, embed, save = TrainingLoop._seed, TrainingLoop._embed, checkpoint.save

    def is_due(place: str, rank: int) -> bool:
        return strike.place == place and rank == strike.rank and due(now["stage"], now["epoch"])

    def armed_seed(self: TrainingLoop, name: str, epoch: int) -> None:
        now.update(stage=name, epoch=epoch, step=0, embedded=0)
        seed(self, name, epoch)

    def before_step(*_: Any) -> None:
        now["step"] += 1
        if now["step"] == strike.step and is_due("step", collectives.rank()):
            hit()

    def armed_embed(self: TrainingLoop, *args: Any) -> Any:
        now["embedded"] += 1
        if now["embedded"] == 2 and is_due("embed", self.rank):
            threading.Timer(0.01, hit).start()  # within the second modality
        return embed(self, *args)

    def armed_save(folder: Path, state: dict[str, Any], info: dict[str, Any]) -> None:
        if is_due("write", 0) and strike.victim == "worker":
            (folder / f"{checkpoint.STATE}.partial").write_bytes(b"half")
            hit()
        save(folder, state, info)
        if is_due("write", 0):
            hit()

    register_optimizer_step_pre_hook(before_step)
    TrainingLoop._seed = armed_seed  # type: ignore[method-assign]
    TrainingLoop._embed = armed_embed  # type: ignore[method-assign]
    checkpoint.save = armed_save


# Around it ---------------------------------------------------------------------------------------


def launch(run_dir: Path, data: Path, strike: Strike | None, scratch: Path, address: str) -> int:
    """Run the child to its end; returns its exit code."""
    command = [sys.executable, __file__, "--child", str(run_dir), "--data", str(data)]
    command += ["--scratch", str(scratch), "--address", address]
    if strike is not None:
        command += ["--strike", json.dumps(asdict(strike))]
    with (scratch / "log.txt").open("ab") as log:
        try:
            return subprocess.run(command, stdout=log, stderr=log, timeout=LIMIT_S).returncode
        except subprocess.TimeoutExpired:
            return -1


def measure(scenario: str, seed: int, data: Path, folder: Path, address: str) -> dict[str, Any]:
    """One row of the table."""
    strike = choose(scenario, seed) if scenario in SCENARIOS else None
    run_dir, scratch = folder / "run", folder / "scratch"
    scratch.mkdir(parents=True)
    began = time.time()
    codes = [launch(run_dir, data, strike, scratch, address)]
    if strike is not None and strike.victim == "driver":
        codes.append(launch(run_dir, data, strike, scratch, address))
    row: dict[str, Any] = {"kill": scenario, "exit codes": codes, "seconds": time.time() - began}
    if codes[-1]:
        row["log"] = (scratch / "log.txt").read_text()[-2000:]
    if strike is not None:
        row["moment"] = f"{strike.stage} {strike.epoch}"
        row["moment"] += f", step {strike.step}" if strike.place == "step" else ""
        struck = scratch / "struck"
        row["struck"] = struck.exists()
        if (scratch / "back").exists():
            row["back after s"] = _read(scratch / "back") - _read(struck)
    row["epochs"] = len(list(runlog.read_metrics(run_dir)))
    if codes[-1] == 0:
        row["hash"] = checkpoint.content_hash(checkpoint.load(checkpoint.find(run_dir)))
    return row


def _read(time_written: Path) -> float:
    return float(time_written.read_text())


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A Ray of our own for all runs; yields its address."""
    os.environ |= {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "RAY_AUTH_MODE": "disabled",
    }
    import ray  # reads the environment

    started = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        _temp_dir=str(folder),
    )
    try:
        yield started.address_info["gcs_address"]
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    parser.add_argument("--out", type=Path)
    for hidden in ("--child", "--data", "--scratch"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    for hidden in ("--strike", "--address"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        strike = Strike(**json.loads(chosen.strike)) if chosen.strike else None
        child(chosen.child, chosen.data, strike, chosen.scratch, chosen.address)
        return
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as name,
        cluster(Path(name) / "ray") as address,
    ):
        data = Path(name) / "people"
        synthetic.write(data, num_identities=10, seed=4, height=32)
        for number, scenario in enumerate(["undisturbed", *(chosen.only or SCENARIOS)]):
            row = measure(scenario, chosen.seed, data, Path(name) / str(number), address)
            rows.append(row)
            row["equal"] = row.get("hash", "none") == rows[0].get("hash")
            print(json.dumps(row), flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps(rows, indent=1))
    good = all(row["equal"] and row.get("struck", True) for row in rows)
    print(f"{len(rows) - 1} kills, {'all' if good else 'NOT all'} end as the undisturbed run")
    sys.exit(not good)


if __name__ == "__main__":
    main()
