"""Does a run on machines that are taken away again and again end as the undisturbed run?

Three small runs on a real Ray, equal in everything: one undisturbed; one whose second worker is
killed with -9 six times, after one and a half epochs and after half an epoch in turn, though
`trainer.max_failures` is 1; and one that is asked to end by SIGTERM within an epoch and is then
given the same command again. The content hash of the last checkpoint must be the same.

    python -m benchmarks.spot [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import killed_runs
from pipelines.config import run as configuration
from pipelines.runs import checkpoint, runlog
from reid_core.datasets import synthetic

STEPS, EPOCHS = 6, {"prepare": 3, "prompts": 1, "align": 5}
LIVES = (9, 4) * 3
"""Steps of the second worker before it is killed; an epoch has six."""
LIMIT_S = 600


def overrides(data: Path, address: str) -> list[str]:
    """The run of `killed_runs`, in longer epochs, whose state is kept after every step."""
    return [
        *killed_runs.overrides(killed_runs.RUNS["cclnet"], data, address),
        *(f"cclnet.{stage}.epochs={epochs}" for stage, epochs in EPOCHS.items()),
        *(f"cclnet.{stage}.batches_per_epoch={STEPS}" for stage in ("prepare", "align")),
        "trainer.checkpoint_every=0.001",
    ]


def child(run_dir: Path, data: Path, scratch: Path, address: str) -> None:
    """Train with the kills built in."""
    from pipelines.training import driver, group, worker

    def armed_work(settings: dict[str, Any]) -> None:
        arm(scratch)
        worker.work(settings)

    mock.patch.object(group, "work", armed_work).start()
    config = configuration.load(Path("demo.yaml"), overrides(data, address))
    driver.train(config, run_dir, sys.argv)


def arm(scratch: Path) -> None:
    """The second worker's process ends itself when its life is over."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from pipelines.distributed import collectives

    struck = len(list(scratch.glob("kill-*")))
    steps = 0

    def before_step(*_: Any) -> None:
        nonlocal steps
        steps += 1
        due = struck < len(LIVES) and steps > LIVES[struck]
        if due and collectives.rank() == 1:
            (scratch / f"kill-{struck}").write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(before_step)


def row(name: str, run_dir: Path, began: float, **more: Any) -> dict[str, Any]:
    """What a finished run is compared by."""
    newest = checkpoint.load(checkpoint.find(run_dir))
    lines = [
        {k: x for k, x in line.items() if k in ("stage", "epoch", "losses", "labels")}
        for line in runlog.read_metrics(run_dir)
    ]
    hashed = {"hash": checkpoint.content_hash(newest), "log": lines}
    return {"run": name, **more, "seconds": time.time() - began, **hashed}


def killed(folder: Path, data: Path, address: str, *, name: str, lives: int) -> dict[str, Any]:
    """A run with as many kills as there are lives left in the scratch folder."""
    scratch, began = folder / "scratch", time.time()
    scratch.mkdir(parents=True)
    for number in range(len(LIVES) - lives):
        (scratch / f"kill-{number}").write_text("")
    command = [sys.executable, "-m", "benchmarks.spot", "--child", str(folder / "run")]
    command += ["--data", str(data), "--scratch", str(scratch), "--address", address]
    code = killed_runs.launch(command, scratch)
    struck = sum(bool(path.read_text()) for path in scratch.glob("kill-*"))
    if code:
        sys.exit((scratch / "log.txt").read_text()[-3000:])
    return row(name, folder / "run", began, kills=struck)


def terminated(folder: Path, data: Path, address: str) -> dict[str, Any]:
    """SIGTERM to the command within an epoch, then the same command."""
    run_dir, began = folder / "run", time.time()
    command = [sys.executable, "-m", "pipelines.cli", "train", "demo.yaml", "--out", str(run_dir)]
    command += overrides(data, address)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        while not (run_dir / checkpoint.WITHIN).exists() and process.poll() is None:
            time.sleep(0.02)
        asked = time.time()
        process.terminate()
        said, _ = process.communicate(timeout=LIMIT_S)
        took, code = time.time() - asked, process.returncode
    underway = checkpoint.load_file(run_dir / checkpoint.WITHIN)["within"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if again.returncode:
        sys.exit(again.stdout + again.stderr)
    more = {"exit code": code, "s until it ended": took, "said": said.strip().splitlines()[-1]}
    more["at"] = f"{underway['stage']} {underway['epoch']}, batch {underway['batch']}"
    return row("SIGTERM, the same command again", run_dir, began, **more)


def main() -> None:
    """All three runs, or one of them where `killed` started this."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    for hidden in ("--child", "--data", "--scratch"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child, chosen.data, chosen.scratch, chosen.address)
        return
    with (
        tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as name,
        killed_runs.cluster(Path(name) / "ray") as address,
    ):
        data = Path(name) / "identities"
        synthetic.write(data / "sysu", num_identities=10, seed=4, layout="sysu", height=32)
        rows = [killed(Path(name) / "0", data, address, name="undisturbed", lives=0)]
        num = len(LIVES)
        rows.append(killed(Path(name) / "1", data, address, name=f"{num} kills", lives=num))
        rows.append(terminated(Path(name) / "2", data, address))
    for one in rows:
        one["equal"] = (one["hash"], one["log"]) == (rows[0]["hash"], rows[0]["log"])
        print(json.dumps({k: x for k, x in one.items() if k != "log"}), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(rows, indent=1))
    good = all(one["equal"] for one in rows) and rows[1]["kills"] == len(LIVES)
    sys.exit(not (good and rows[2]["exit code"] == 128 + signal.SIGTERM))


if __name__ == "__main__":
    main()
