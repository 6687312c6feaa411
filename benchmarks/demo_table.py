"""Does it learn? Every row of the demo's table, over seeds and difficulty settings of the world.

Two phases, both resumable (finished runs are read from the results file):

search   every row gets the same small search over learning rate, eps and momentum on one world of
         validation people that no reported number uses;
confirm  the chosen setting of every row runs on freshly drawn worlds, one per seed; last epoch.

Runs use the plain loop of `benchmarks.plain_loop` (same code as a Ray worker), one thread each.

    python benchmarks/demo_table.py --out runs/bench-demo
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEARCH_SEED = 1000
SEEDS = (11, 12, 13)
DIFFICULTIES = ("default", "easy", "hard")
NUM_IDENTITIES = 500

NO_TEXT = ("cclnet.image_to_text=0",)
ROWS: dict[str, tuple[str, ...]] = {
    "no coupling": (*NO_TEXT, "cclnet.swap.when=never"),
    "swap epoch_once": (*NO_TEXT, "cclnet.swap.when=epoch_once"),
    "swap epoch": (*NO_TEXT, "cclnet.swap.when=epoch"),
    "swap step": (*NO_TEXT, "cclnet.swap.when=step"),
    "CCLNet: swap epoch + prompts": ("cclnet.swap.when=epoch",),
    "ours: shared prototype": (*NO_TEXT, "cclnet.matching.shared=true"),
    "true identities": (*NO_TEXT, "cclnet.labels=identities"),
}

BASE = {"cclnet.align.lr": 1e-3, "cclnet.clustering.eps": 0.6, "cclnet.memory.momentum": 0.5}
SETTINGS: tuple[dict[str, float], ...] = (
    BASE,
    {**BASE, "cclnet.align.lr": 2e-3},
    {**BASE, "cclnet.clustering.eps": 0.5},
    {**BASE, "cclnet.memory.momentum": 0.2},
)


@dataclass(frozen=True)
class Run:
    """One training: which row, on which world, with which setting."""

    phase: str
    row: str
    difficulty: str
    seed: int
    setting: tuple[tuple[str, float], ...]

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def execute(run: Run, out: Path, recipe: str) -> dict[str, Any]:
    """Train one row and return its scores and epochs."""
    import torch

    from benchmarks.plain_loop import train
    from pipelines import config as configuration
    from pipelines.prepare import prepare

    torch.set_num_threads(1)
    began = time.perf_counter()
    overrides = [
        f"data.root={world(out, run.difficulty, run.seed)}",
        f"seed={run.seed}",
        *ROWS[run.row],
        *(f"{key}={value}" for key, value in run.setting),
    ]
    config = configuration.load(Path(recipe), overrides)
    folder = out / "runs" / hashlib.sha256(run.key.encode()).hexdigest()[:12]
    shutil.rmtree(folder, ignore_errors=True)
    prepared = prepare(config, lambda files, modality: [])
    progress, lines = train(config, prepared, folder)
    return {
        "run": asdict(run),
        "scores": progress.scores,
        "chance": progress.chance,
        "epochs": lines,
        "seconds": time.perf_counter() - began,
    }


def world(out: Path, difficulty: str, seed: int) -> Path:
    """Folder of one generated world."""
    return out / "worlds" / f"{difficulty}-{seed}"


def draw_worlds(out: Path, runs: Iterable[Run], workers: int) -> None:
    from reid_core.datasets import synthetic

    for difficulty, seed in sorted({(run.difficulty, run.seed) for run in runs}):
        synthetic.write(
            world(out, difficulty, seed),
            num_identities=NUM_IDENTITIES,
            seed=seed,
            difficulty=difficulty,  # type: ignore[arg-type]
            test_share=0.5,
            workers=workers,
        )


def run_all(runs: list[Run], out: Path, *, recipe: str, processes: int) -> dict[str, dict]:
    """Execute what is not in the results file yet; returns results by run key."""
    path = out / "results.jsonl"
    done: dict[str, dict] = {}
    if path.exists():
        for text in path.read_text().splitlines():
            result = json.loads(text)
            stored = Run(**{**result["run"], "setting": _pairs(result["run"]["setting"])})
            done[stored.key] = result
    todo = [run for run in runs if run.key not in done]
    draw_worlds(out, todo, processes)
    with ProcessPoolExecutor(processes) as pool, path.open("a") as file:
        futures = {pool.submit(execute, run, out, recipe): run for run in todo}
        for number, future in enumerate(as_completed(futures), start=1):
            run, result = futures[future], future.result()
            done[run.key] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            scores = result["scores"]["align"]
            print(
                f"{number}/{len(todo)} {run.phase} {run.difficulty} seed {run.seed} {run.row} "
                f"{dict(run.setting)}: Rank-1 {scores['rank1']:.1f} mAP {scores['mAP']:.1f} "
                f"({result['seconds']:.0f} s)",
                flush=True,
            )
    return done


def search(out: Path, recipe: str, processes: int) -> dict[str, tuple[tuple[str, float], ...]]:
    """The best setting of every row on the validation world, by Rank-1 + mAP."""
    runs = [
        Run("search", row, "default", SEARCH_SEED, _pairs(setting.items()))
        for row in ROWS
        for setting in SETTINGS
    ]
    results = run_all(runs, out, recipe=recipe, processes=processes)
    chosen = {}
    for row in ROWS:
        own = [run for run in runs if run.row == row]
        chosen[row] = max(own, key=lambda run: _goal(results[run.key])).setting
    return chosen


def confirm(
    out: Path,
    recipe: str,
    processes: int,
    chosen: dict[str, tuple[tuple[str, float], ...]],
    difficulties: Iterable[str],
) -> str:
    """Run every row on fresh worlds and print a table per difficulty."""
    parts = []
    for difficulty in difficulties:
        runs = [
            Run("confirm", row, difficulty, seed, chosen[row]) for seed in SEEDS for row in ROWS
        ]
        results = run_all(runs, out, recipe=recipe, processes=processes)
        by_row = {row: [results[r.key] for r in runs if r.row == row] for row in ROWS}
        parts.append(_table(difficulty, by_row, chosen))
        print(parts[-1], flush=True)
    return "\n".join(parts)


def _table(difficulty: str, by_row: dict[str, list[dict]], chosen: dict[str, Any]) -> str:
    start = [result["scores"]["start"] for result in next(iter(by_row.values()))]
    chance = statistics.mean(result["chance"] for result in next(iter(by_row.values())))
    lines = [
        f"### World: {difficulty} (chance Rank-1 {chance:.1f} %)",
        "",
        "| row | Rank-1 | mAP | Rank-1 per seed | mAP per seed | matching accuracy, last epoch "
        "| lr, eps, momentum | s per run |",
        "|---|---|---|---|---|---|---|---|",
        _line("start", start, "", "", ""),
    ]
    for row, results in by_row.items():
        accuracy = [e["truth"].get("matching_accuracy") for r in results for e in r["epochs"][-1:]]
        known = [a for a in accuracy if a is not None]
        setting = ", ".join(f"{value:g}" for _, value in chosen[row])
        seconds = statistics.mean(result["seconds"] for result in results)
        lines.append(
            _line(
                row,
                [result["scores"]["align"] for result in results],
                f"{statistics.mean(known):.2f}" if known else "-",
                setting,
                f"{seconds:.0f}",
            )
        )
    return "\n".join(lines) + "\n"


def _line(row: str, scores: list[dict[str, float]], *rest: str) -> str:
    cells = [row]
    for name in ("rank1", "mAP"):
        values = [score[name] for score in scores]
        cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
    for name in ("rank1", "mAP"):
        cells.append(" / ".join(f"{score[name]:.1f}" for score in scores))
    return "| " + " | ".join([*cells, *rest]) + " |"


def _goal(result: dict) -> float:
    return result["scores"]["align"]["rank1"] + result["scores"]["align"]["mAP"]


def _pairs(items: Iterable[Any]) -> tuple[tuple[str, float], ...]:
    return tuple((str(key), float(value)) for key, value in items)


def main() -> None:
    """Search, confirm, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-demo"))
    parser.add_argument("--recipe", default="demo.yaml")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--difficulty", nargs="*", default=DIFFICULTIES)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = search(out, arguments.recipe, arguments.processes)
    tables = confirm(out, arguments.recipe, arguments.processes, chosen, arguments.difficulty)
    (out / "table.md").write_text(tables)
    print(f"tables: {out / 'table.md'}")


if __name__ == "__main__":
    main()
