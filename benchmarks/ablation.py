"""Trainings on freshly drawn worlds, side by side: what the tables of learning results share.

A run is a recipe, its overrides and a world. Finished runs are read from the results file, so an
interrupted table goes on where it stopped, and tables with the same folder share their runs. Each
run is one process without Ray, on one thread; `--rows` runs some rows alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCORES = ("rank1", "mAP")


@dataclass(frozen=True)
class World:
    """One drawing of generated identities; fields as `synthetic.write` takes them."""

    seed: int
    num_identities: int = 500
    layout: str = "sysu"
    difficulty: str = "default"
    test_share: float = 0.5

    def folder(self, out: Path) -> Path:
        """Where it lies below `out`."""
        return out / "worlds" / "-".join(str(value) for value in asdict(self).values())


@dataclass(frozen=True)
class Run:
    """One training."""

    recipe: str
    world: World
    overrides: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The same for runs that are the same."""
        return json.dumps(asdict(self), sort_keys=True)


Results = dict[str, dict[str, Any]]
"""Per key of a run: its "start" and "last" scores in percent, "chance", "epochs", "seconds"."""


def execute(run: Run, out: Path) -> dict[str, Any]:
    """Train; see `Results`."""
    import torch

    from pipelines.config import run as configuration
    from pipelines.runs import runlog
    from pipelines.training import local

    torch.set_num_threads(1)
    began = time.perf_counter()
    given = [f"data.root={run.world.folder(out)}", f"seed={run.world.seed}", *run.overrides]
    config = configuration.load(Path(run.recipe), given)
    folder = out / "runs" / hashlib.sha256(run.key.encode()).hexdigest()[:12]
    shutil.rmtree(folder, ignore_errors=True)
    summary = local.train(config, folder, readers=1)
    return {
        "run": asdict(run),
        "start": summary["rows"]["start"],
        "last": summary["rows"]["final"],
        "chance": summary["chance"]["rank1"],
        "epochs": list(runlog.read_metrics(folder)),
        "seconds": time.perf_counter() - began,
    }


def run_all(runs: Sequence[Run], out: Path, *, processes: int) -> Results:
    """Execute what is not in the results file of `out` yet."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.dumps(x["run"], sort_keys=True): x for x in map(json.loads, lines)}
    todo = list({run.key: run for run in runs if run.key not in done}.values())
    _draw({run.world for run in todo}, out, processes)
    with ProcessPoolExecutor(processes) as pool, path.open("a") as file:
        futures = {pool.submit(execute, run, out): run for run in todo}
        for number, future in enumerate(as_completed(futures), start=1):
            run, result = futures[future], future.result()
            done[run.key] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            rank1, mean_ap = (result["last"][name] for name in SCORES)
            print(
                f"{number}/{len(todo)} {run.world.difficulty} seed {run.world.seed} {run.recipe} "
                f"{' '.join(run.overrides)}: Rank-1 {rank1:.1f} mAP {mean_ap:.1f} "
                f"({result['seconds']:.0f} s)",
                flush=True,
            )
    return done


def _draw(worlds: Iterable[World], out: Path, workers: int) -> None:
    from reid_core.datasets import synthetic

    for world in sorted(worlds, key=lambda world: world.folder(out)):
        options = asdict(world)
        synthetic.write(world.folder(out), **options, workers=workers)


def score_cells(scores: Sequence[dict[str, float]]) -> list[str]:
    """Mean and standard deviation of Rank-1 and of mAP, then both of every seed."""
    values = [[score[name] for score in scores] for name in SCORES]
    spreads = [statistics.stdev(x) if len(x) > 1 else 0.0 for x in values]
    return [
        *(
            f"{statistics.mean(x):.1f} ± {spread:.1f}"
            for x, spread in zip(values, spreads, strict=True)
        ),
        *(per_seed(x) for x in values),
    ]


SCORE_HEADS = ("Rank-1", "mAP", "Rank-1 per seed", "mAP per seed")


def per_seed(values: Iterable[float], sign: str = "") -> str:
    """Values of all seeds in one cell; `sign` "+" shows it of gains."""
    return " / ".join(f"{value:{sign}.1f}" for value in values)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def arguments(doc: str, *, seeds: Sequence[int], rows: Iterable[str]) -> argparse.ArgumentParser:
    """The command line that every table has; `rows` are those that can be chosen."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--out",
        type=lambda text: Path(text).resolve(),
        default=Path("runs/learning").resolve(),
        help="finished runs are kept here",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(seeds))
    parser.add_argument(
        "--rows", nargs="*", choices=list(rows), default=list(rows), help="these alone"
    )
    return parser
