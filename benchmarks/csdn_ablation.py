"""What each part of CSDN brings on generated people, and how far it is above CCLNet there.

Every row runs on the same freshly drawn worlds, one per seed, last epoch; finished runs are read
from the results file, so an interrupted table goes on where it stopped. Runs use the plain loop of
`benchmarks.plain_loop` (same code as a Ray worker), one thread each.

    python benchmarks/csdn_ablation.py --out runs/bench-csdn
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NUM_IDENTITIES = 500
NO_TEXT = ("cclnet.image_to_text=0",)

# row -> recipe, overrides
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CSDN: no text": ("csdn_demo.yaml", ("csdn.anchors=none",)),
    "CSDN: one shared prompt": ("csdn_demo.yaml", ("csdn.anchors=shared",)),
    "CSDN: own-modality anchors": ("csdn_demo.yaml", ("csdn.anchors=own",)),
    "CSDN: mean of anchors": ("csdn_demo.yaml", ("csdn.anchors=mean",)),
    "CSDN: fusion": ("csdn_demo.yaml", ()),
    "CSDN: fusion, stage 1 as the authors pair it": ("csdn_demo.yaml", ("csdn.pairing=joint",)),
    "CCLNet": ("demo.yaml", ()),
    "CCLNet, ours: shared prototype": ("demo.yaml", (*NO_TEXT, "cclnet.matching.shared=true")),
}


@dataclass(frozen=True)
class Run:
    """One training: which row, on which world."""

    row: str
    seed: int


def execute(run: Run, out: Path) -> dict[str, Any]:
    """Train one row; its scores and seconds."""
    import torch

    from benchmarks.plain_loop import train
    from pipelines import config as configuration
    from pipelines.prepare import prepare

    torch.set_num_threads(1)
    began = time.perf_counter()
    recipe, overrides = ROWS[run.row]
    config = configuration.load(
        Path(recipe), [f"data.root={world(out, run.seed)}", f"seed={run.seed}", *overrides]
    )
    folder = out / "runs" / f"{list(ROWS).index(run.row)}-{run.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    progress, _ = train(config, prepare(config, lambda files, modality: []), folder)
    return {
        "run": asdict(run),
        "start": progress.scores["start"],
        "last": progress.scores[progress.stage],
        "chance": progress.chance,
        "seconds": time.perf_counter() - began,
    }


def world(out: Path, seed: int) -> Path:
    """Folder of one generated world."""
    return out / "worlds" / str(seed)


def run_all(runs: list[Run], out: Path, *, processes: int) -> dict[Run, dict[str, Any]]:
    """Execute what is not in the results file yet."""
    from reid_core.datasets import synthetic

    path = out / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {Run(**result["run"]): result for result in map(json.loads, lines)}
    todo = [run for run in runs if run not in done]
    for seed in sorted({run.seed for run in todo}):
        synthetic.write(
            world(out, seed),
            num_identities=NUM_IDENTITIES,
            seed=seed,
            test_share=0.5,
            workers=processes,
        )
    with ProcessPoolExecutor(processes) as pool, path.open("a") as file:
        futures = {pool.submit(execute, run, out): run for run in todo}
        for number, future in enumerate(as_completed(futures), start=1):
            run, result = futures[future], future.result()
            done[run] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(
                f"{number}/{len(todo)} seed {run.seed} {run.row}: "
                f"Rank-1 {result['last']['rank1']:.1f} mAP {result['last']['mAP']:.1f} "
                f"({result['seconds']:.0f} s)",
                flush=True,
            )
    return done


def table(results: dict[Run, dict[str, Any]], seeds: list[int]) -> str:
    """Mean and standard deviation over seeds, and every seed."""
    lines = [
        "| row | start Rank-1 / mAP | Rank-1 | mAP | Rank-1 per seed | mAP per seed | s per run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        found = [results[Run(row, seed)] for seed in seeds]
        starts = [statistics.mean(r["start"][name] for r in found) for name in ("rank1", "mAP")]
        cells = [row, f"{starts[0]:.1f} / {starts[1]:.1f}"]
        scores = {name: [r["last"][name] for r in found] for name in ("rank1", "mAP")}
        for values in scores.values():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        cells += [" / ".join(f"{value:.1f}" for value in values) for values in scores.values()]
        cells.append(f"{statistics.mean(r['seconds'] for r in found):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-csdn"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="*", default=[11, 12, 13])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    runs = [Run(row, seed) for seed in arguments.seeds for row in ROWS]
    text = table(run_all(runs, out, processes=arguments.processes), arguments.seeds)
    (out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
