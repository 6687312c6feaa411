"""What each part of CPCL brings on generated people with captions.

Every row starts from the same weights and runs on the same freshly drawn worlds, one per seed, with
the same steps, batches and masked words; last epoch. Contrast alone is run with several learning
rates and its best mean counts, so that no rate is chosen for CPCL only. Finished runs are read from
the results file, so an interrupted table goes on where it stopped. Runs use the plain loop of
`benchmarks.plain_loop` (same code as a Ray worker), one thread each.

    python benchmarks/cpcl_ablation.py --out runs/bench-cpcl
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

NUM_IDENTITIES = 430
CONTRAST = ("cpcl.matching.instance=itc",)
NO_MINING = ("cpcl.mining.sides=none",)
RATES = ("3.0e-4", "1.0e-3", "3.0e-3")

# row -> overrides of cpcl_demo.yaml
BASELINES: dict[str, tuple[str, ...]] = {
    f"contrast alone, lr {rate}": (
        *CONTRAST,
        *NO_MINING,
        "cpcl.lambda1=0",
        "cpcl.lambda2=0",
        f"cpcl.train.lr={rate}",
    )
    for rate in RATES
}
ROWS: dict[str, tuple[str, ...]] = {
    **BASELINES,
    "+ prototypes": (*CONTRAST, *NO_MINING, "cpcl.lambda2=0"),
    "+ many-to-many instances": (*NO_MINING, "cpcl.lambda2=0"),
    "+ prototypes across modalities": NO_MINING,
    "+ mining: CPCL": (),
    "CPCL, soft targets": ("cpcl.matching.targets=soft",),
    "true identities, upper bound": ("cpcl.labels=identities",),
}


@dataclass(frozen=True)
class Run:
    """One training: which row, on which world."""

    row: str
    seed: int


def execute(run: Run, out: Path) -> dict[str, Any]:
    """Train one row; its scores, its outliers in the last epoch, and seconds."""
    import torch

    from benchmarks.plain_loop import train
    from pipelines import config as configuration
    from pipelines.prepare import prepare

    torch.set_num_threads(1)
    began = time.perf_counter()
    config = configuration.load(
        Path("cpcl_demo.yaml"),
        [f"data.root={world(out, run.seed)}", f"seed={run.seed}", *ROWS[run.row]],
    )
    folder = out / "runs" / f"{list(ROWS).index(run.row)}-{run.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    progress, _ = train(config, prepare(config, lambda files, modality: []), folder)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "run": asdict(run),
        "start": progress.scores["start"],
        "last": progress.scores[progress.stage],
        "outliers": {key: value for key, value in last.items() if "_outliers_" in key},
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
            layout="cuhk",
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
    """Mean and standard deviation over seeds, every seed, and the gain over the best baseline."""

    def scores(row: str, name: str) -> list[float]:
        return [results[Run(row, seed)]["last"][name] for seed in seeds]

    best = max(BASELINES, key=lambda row: statistics.mean(scores(row, "rank1")))
    start = [results[Run(best, seed)]["start"] for seed in seeds]
    lines = [
        f"Start: Rank-1 {statistics.mean(s['rank1'] for s in start):.1f}, "
        f"mAP {statistics.mean(s['mAP'] for s in start):.1f}. Gains are over {best!r}.",
        "",
        "| row | Rank-1 | mAP | Rank-1 per seed | gain per seed | s per run |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        rank1, mean_ap = scores(row, "rank1"), scores(row, "mAP")
        gains = [a - b for a, b in zip(rank1, scores(best, "rank1"), strict=True)]
        seconds = statistics.mean(results[Run(row, seed)]["seconds"] for seed in seeds)
        cells = [
            row,
            *(f"{statistics.mean(x):.1f} ± {_spread(x):.1f}" for x in (rank1, mean_ap)),
            " / ".join(f"{x:.1f}" for x in rank1),
            " / ".join(f"{x:+.1f}" for x in gains),
            f"{seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-cpcl"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    runs = [Run(row, seed) for seed in arguments.seeds for row in ROWS]
    text = table(run_all(runs, out, processes=arguments.processes), arguments.seeds)
    (out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
