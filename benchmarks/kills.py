"""Does a run that is killed end in the state of the undisturbed run? Eighteen kills, on a real Ray.

A small run of each method (all stages, two workers; CCLNet and BMIL with a ResNet and with a
transformer) is repeated with a kill -9 of one of its processes at a moment that the seed chooses.
After a kill of the driver the same command is run again at once, all other kills are Ray Train's to
mend. The content hash of the last checkpoint must be that of the undisturbed run. All runs use one
cluster, which this script starts and ends.

The table tells who noticed (what a worker was told, where one was), seconds from the kill until
that, seconds from the kill until the first step of the group that took over, and epochs that were
begun twice.

    python -m benchmarks.kills [--seed 0] [--only "driver mid-epoch"] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.killed_runs import RUNS, STEPS, cluster, launch, overrides
from pipelines.config import run as configuration
from pipelines.runs import checkpoint
from reid_core.datasets import synthetic


@dataclass(frozen=True)
class Strike:
    """One kill: who, where in the code, and when."""

    victim: str
    place: str
    stage: str
    epoch: int
    step: int
    rank: int


# run, who dies, when; a place in the order is part of a moment's seed, so new ones come last
SCENARIOS = {
    "driver mid-epoch": ("cclnet", "driver", "step"),
    "driver while clustering": ("cclnet", "driver", "cluster"),
    "driver while a checkpoint is written": ("cclnet", "driver", "write"),
    "worker mid-epoch": ("cclnet", "worker", "step"),
    "worker while embedding": ("cclnet", "worker", "embed"),
    "worker while a checkpoint is written": ("cclnet", "worker", "write"),
    "memory actor while clustering": ("cclnet", "actor", "cluster"),
    "memory actor mid-epoch": ("cclnet", "actor", "step"),
    "driver mid-epoch, CSDN": ("csdn", "driver", "step"),
    "worker mid-epoch, CSDN": ("csdn", "worker", "step"),
    "driver while clustering, CPCL": ("cpcl", "driver", "cluster"),
    "worker mid-epoch, CPCL": ("cpcl", "worker", "step"),
    "driver mid-epoch, BMIL on a transformer": ("bmil", "driver", "step"),
    "worker mid-epoch, BMIL on a transformer": ("bmil", "worker", "step"),
    "driver mid-epoch, CCLNet on a transformer": ("cclnet-vit", "driver", "step"),
    "worker mid-epoch, CCLNet on a transformer": ("cclnet-vit", "worker", "step"),
    "driver mid-epoch, BMIL on a ResNet": ("bmil-resnet", "driver", "step"),
    "worker mid-epoch, BMIL on a ResNet": ("bmil-resnet", "worker", "step"),
}


def choose(scenario: str, seed: int) -> Strike:
    """The seed's moment; only stages that stream have an actor to cluster and images to embed."""
    name, victim, place = SCENARIOS[scenario]
    run = RUNS[name]
    rng = np.random.default_rng((seed, list(SCENARIOS).index(scenario)))
    anywhere = run.method == "cclnet" and victim != "actor" and place in ("step", "write")
    stages = tuple(run.epochs) if anywhere else run.streamed
    moments = [(stage, epoch) for stage in stages for epoch in range(run.epochs[stage])]
    if (victim, place) == ("actor", "step"):
        moments.pop()  # after its last answer nobody misses it
    stage, epoch = moments[rng.integers(len(moments))]
    step = int(rng.integers(1, STEPS)) if stage in run.streamed else 1
    return Strike(
        victim, place, stage, epoch, step, 0 if place == "write" else int(rng.integers(2))
    )


# The run itself, in a process of its own ---------------------------------------------------------


def child(
    name: str, run_dir: Path, data: Path, strike: Strike | None, scratch: Path, address: str
) -> None:
    """Train with the strike built in; it happens once, whoever runs this again."""
    from pipelines.training import driver, group

    arm(group, strike, os.getpid(), scratch)
    config = configuration.load(Path(RUNS[name].recipe), overrides(RUNS[name], data, address))
    driver.train(config, run_dir, sys.argv)


def arm(module: Any, strike: Strike | None, driver: int, scratch: Path) -> None:
    """Put the strike into the processes that Ray starts; functions of this file travel by value."""
    from pipelines.training.epoch_maker import epoch_maker_of
    from pipelines.training.memory_bank import MemoryBank

    def hit() -> None:
        assert strike is not None
        if strike.victim == "actor":
            pid = int((scratch / "actor").read_text())
        else:
            pid = driver if strike.victim == "driver" else os.getpid()
        note("struck", "")
        os.kill(pid, signal.SIGKILL)

    def due(stage: str, epoch: int) -> bool:
        moment = (strike.stage, strike.epoch) if strike is not None else None
        return (stage, epoch) == moment and not (scratch / "struck").exists()

    def note(name: str, what: str) -> None:
        """The first time that something happens after the kill, or the kill itself."""
        after = name == "struck" or (scratch / "struck").exists()
        if after and not (scratch / name).exists():
            (scratch / name).write_text(f"{time.time()!r} {what}")

    class Bank(MemoryBank):
        """Writes down its process, and strikes while it clusters."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            (scratch / "actor").write_text(str(os.getpid()))

        def _label(self, *args: Any) -> None:
            clustering = strike is not None and strike.place == "cluster"
            if clustering and self._key is not None and due(*self._key):
                hit()
                time.sleep(1)
            super()._label(*args)

    work = module.work

    def armed_work(settings: dict[str, Any]) -> None:
        note("back", "")
        arm_worker(strike, scratch, hit, due, note)
        try:
            work(settings)
        except BaseException as error:
            note("noticed", f"a worker: {type(error).__name__}")
            raise

    mock.patch.dict(epoch_maker_of.__globals__, MemoryBank=Bank).start()
    module.work = armed_work


def arm_worker(
    strike: Strike | None,
    scratch: Path,
    hit: Callable[[], None],
    due: Callable[[str, int], bool],
    note: Callable[[str, str], None],
) -> None:
    """Strike in a worker's step, embedding or checkpoint; write down what it goes through."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from pipelines.distributed import collectives
    from pipelines.runs import checkpoint
    from pipelines.training.embedding import Embedding
    from pipelines.training.equipment import Equipment

    now: dict[str, Any] = {"stage": "", "epoch": -1, "step": 0, "embedded": 0}
    begin_epoch, embed, save = Equipment.begin_epoch, Embedding.share, checkpoint.save

    def is_due(place: str, rank: int) -> bool:
        return (
            strike is not None
            and (strike.place, strike.rank) == (place, rank)
            and due(now["stage"], now["epoch"])
        )

    def armed_begin(self: Equipment, name: str, epoch: int) -> None:
        now.update(stage=name, epoch=epoch, step=0, embedded=0)
        if collectives.rank() == 0:
            with (scratch / "epochs").open("a") as file:
                file.write(f"{name} {epoch}\n")
        begin_epoch(self, name, epoch)

    def before_step(*_: Any) -> None:
        now["step"] += 1
        if (scratch / "back").exists():
            note("on", "")
        if strike is not None and now["step"] == strike.step and is_due("step", collectives.rank()):
            hit()

    def armed_embed(self: Embedding, *args: Any) -> Any:
        now["embedded"] += 1
        if now["embedded"] == 2 and is_due("embed", collectives.rank()):
            threading.Timer(0.01, hit).start()  # within the second modality
        return embed(self, *args)

    def armed_save(folder: Path, state: dict[str, Any], info: Any = None) -> None:
        if strike is not None and strike.victim == "worker" and is_due("write", 0):
            (folder / f"{checkpoint.STATE}.partial").write_bytes(b"half")
            hit()
        save(folder, state, info)
        if is_due("write", 0):
            hit()

    register_optimizer_step_pre_hook(before_step)
    Equipment.begin_epoch = armed_begin  # type: ignore[method-assign]
    Embedding.share = armed_embed  # type: ignore[method-assign]
    checkpoint.save = armed_save


# Around it ---------------------------------------------------------------------------------------


def measure(
    scenario: str | None, name: str, seed: int, data: Path, folder: Path, address: str
) -> dict[str, Any]:
    """One row of the table; without a scenario the undisturbed run of that name."""
    strike = choose(scenario, seed) if scenario else None
    run_dir, scratch = folder / "run", folder / "scratch"
    scratch.mkdir(parents=True)
    command = [sys.executable, __file__, "--child", str(run_dir), "--data", str(data)]
    command += ["--scratch", str(scratch), "--address", address, "--run", name]
    command += ["--strike", json.dumps(asdict(strike))] if strike else []
    began, codes = time.time(), [launch(command, scratch)]
    if strike is not None and strike.victim == "driver":
        codes.append(launch(command, scratch))
    row: dict[str, Any] = {"kill": scenario or "none", "run": name, "exit codes": codes}
    row |= {"seconds": time.time() - began}
    if codes[-1]:
        row["log"] = (scratch / "log.txt").read_text()[-2000:]
    else:
        row["hash"] = checkpoint.content_hash(checkpoint.load(checkpoint.find(run_dir)))
    begun = (scratch / "epochs").read_text().splitlines() if (scratch / "epochs").exists() else []
    row["epochs repeated"] = len(begun) - len(set(begun))
    row |= _aftermath(strike, scratch) if strike else {}
    return row


def _aftermath(strike: Strike, scratch: Path) -> dict[str, Any]:
    """When the kill was, who noticed and how long it took until training went on."""
    when: dict[str, float] = {}
    what: dict[str, str] = {}
    for name in ("struck", "noticed", "on"):
        if (scratch / name).exists():
            written, _, what[name] = (scratch / name).read_text().partition(" ")
            when[name] = float(written)
    # where the driver dies Ray ends the others, and whoever gave the command gives it again
    again = strike.victim == "driver"
    step = f", step {strike.step}" if strike.place == "step" else ""
    lasted = {f"s until {k}": when[k] - when["struck"] for k in ("noticed", "on") if k in when}
    return lasted | {
        "moment": f"{strike.stage} {strike.epoch}{step}",
        "struck": "struck" in when,
        "noticed by": "the same command" if again else what.get("noticed", "Ray Train"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per kill."""
    head = ["run", "kill", "moment", "noticed by", "s until noticed", "s until it goes on"]
    head += ["epochs repeated", "equal hash", "s per run"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        seconds = (row.get("s until noticed"), row.get("s until on"), row["seconds"])
        noticed, on, whole = ("" if s is None else f"{s:.1f}" for s in seconds)
        cells = [row["run"], row["kill"], row.get("moment", ""), row.get("noticed by", "")]
        cells += [noticed, on, str(row["epochs repeated"]), "yes" if row["equal"] else "NO", whole]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """All kills, or the run of one when started by `measure`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    parser.add_argument("--out", type=Path)
    for hidden in ("--child", "--data", "--scratch"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    for hidden in ("--strike", "--address", "--run"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        strike = Strike(**json.loads(chosen.strike)) if chosen.strike else None
        child(chosen.run, chosen.child, chosen.data, strike, chosen.scratch, chosen.address)
        return
    kills = chosen.only or list(SCENARIOS)
    names = [name for name in RUNS if name in {SCENARIOS[kill][0] for kill in kills}]
    plan = [(None, name) for name in names] + [(kill, SCENARIOS[kill][0]) for kill in kills]
    rows: list[dict[str, Any]] = []
    undisturbed: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as folder,
        cluster(Path(folder) / "ray") as address,
    ):
        data = Path(folder) / "identities"
        for layout in {RUNS[name].layout for name in names}:
            synthetic.write(data / layout, num_identities=10, seed=4, layout=layout, height=32)
        for number, (kill, name) in enumerate(plan):
            row = measure(kill, name, chosen.seed, data, Path(folder) / str(number), address)
            rows.append(row)
            undisturbed.setdefault(name, row.get("hash", "none"))
            row["equal"] = row.get("hash") == undisturbed[name]
            print(json.dumps(row), flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps(rows, indent=1))
    good = all(row["equal"] and row.get("struck", True) for row in rows)
    print(table(rows))
    print(f"{len(kills)} kills, {'all' if good else 'NOT all'} end as the undisturbed run")
    sys.exit(not good)


if __name__ == "__main__":
    main()
