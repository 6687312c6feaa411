"""What joins the modalities? Every way that this package has, from one start, on many worlds.

    python -m benchmarks.couplings --out runs/couplings --table joins --seeds 21 22 23
    python -m benchmarks.couplings --out runs/couplings --table mismatch --processes 15 --minutes 9
    python -m benchmarks.couplings --out runs/couplings --rows ours --world hard --seed 21 \
        --encoder crossreid-small-vit
    python -m benchmarks.couplings --out runs/own --kind sysu --root TREE        (any tree)

A job is a row, a world, a seed and an encoder: one process, without Ray, on the GPU if there is
one. Worlds are drawn once. A finished job is a line of OUT/results.jsonl and is not run again; one
that was cut off goes on from its last epoch. OUT/table.md is written from the lines. Rows that
turned out worse stay: they answer the question too.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.coupling_rows import CAPTIONS, GENERATED, MAIN, MISMATCHED, OWN, REAL, ROWS, TABLES

RESULTS, TABLE = "results.jsonl", "table.md"


@dataclass(frozen=True)
class Job:
    """One training."""

    row: str
    world: str
    seed: int
    encoder: str
    more: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The same for jobs that are the same."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def folder(self) -> str:
        """A name for its run directory."""
        parts = (self.row, self.world, str(self.seed), self.encoder, *self.more)
        return "-".join("".join(c if c.isalnum() else "_" for c in part) for part in parts)

    def makes_sense(self) -> bool:
        """Captions are CPCL's alone, and nobody is matched rightly where nobody has a partner."""
        if (self.world == CAPTIONS) != (self.row == "CPCL"):
            return False
        return not (self.world == "mismatch-1" and self.row == "true identities")


def draw(world: str, seed: int, folder: Path, roadscene: Path | None) -> None:
    """Write a world, once; a half written one is completed or begun anew."""
    from reid_core.datasets import roadscene as places
    from reid_core.datasets import synthetic

    if world in GENERATED:
        given = {"num_identities": 500, "test_share": 0.5} | GENERATED[world]
        synthetic.write(folder, seed=seed, **given)
    elif world in REAL and not folder.exists():
        if roadscene is None:
            raise SystemExit(f"{world}: give --roadscene, a checkout of hanna-xu/RoadScene")
        half = folder.with_name(f"{folder.name}.half-{os.getpid()}")
        places.write(roadscene, half, seed=seed, difficulty=REAL[world])
        half.rename(folder)


# One job -----------------------------------------------------------------------------------------


def execute(job: Job, root: Path, run_dir: Path, out: Path, *, processes: int) -> None:
    """Train it, or go on training it, and append its line; one that fails says why in its line."""
    import torch

    from pipelines.config import run as configuration
    from pipelines.training import local

    share = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(share)
    recipe, *overrides = ROWS[job.row]
    given = [f"data.root={root}", f"seed={job.seed}", f"model.name={job.encoder}", *overrides]
    given += ["data.fit=train"] if job.world in MISMATCHED else []  # others are seen by everyone
    try:
        config = configuration.load(Path(recipe), [*given, *job.more])
        summary = local.train(config, run_dir, readers=share)
        epochs = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
        line = measured(summary, epochs)
    except Exception as error:
        print(traceback.format_exc(), flush=True)
        line = {"error": f"{type(error).__name__}: {error}"[:500]}
    line["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    with (out / RESULTS).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({"job": asdict(job), **line}) + "\n")
    shutil.rmtree(run_dir, ignore_errors=True)


def measured(summary: dict[str, Any], epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a line says of a run: shares from 0 to 1, scores in percent, None where there is none.

    Attributes of the line: clusters_of_both (clusters after matching, or joint ones, that have
    images of both modalities), selection (scores of validation identities, with
    evaluation.select=val), precision and recall of drawing two images of different modalities
    together, outliers, mutual_nearest, s_per_epoch (last stage, evaluation left out).
    """
    last = epochs[-1]
    of_stage = [line["seconds"] for line in epochs if line["stage"] == last["stage"]]
    truth = last.get("truth") or {}
    association = truth.get("association") or {}
    spent = [sum(s for name, s in line.items() if name != "evaluate") for line in of_stage]
    num_rows = sum((last.get("rows") or {}).values())
    return {
        **{name: summary["rows"]["final"][name] for name in ("rank1", "mAP", "mINP")},
        "start": {name: summary["rows"]["start"][name] for name in ("rank1", "mAP")},
        "stages": {name: [x["rank1"], x["mAP"]] for name, x in summary["rows"].items()},
        "selection": last.get("selection"),
        "clusters_of_both": last.get("clusters_of_both"),
        "precision": association.get("precision"),
        "recall": association.get("recall"),
        "right_pairs": truth.get("matching_accuracy"),
        "outliers": sum(last["outliers"].values()) / num_rows if num_rows else None,
        "mutual_nearest": last.get("mutual_nearest"),
        "mutual_nearest_at_first": epochs[0].get("mutual_nearest"),
        "s_per_epoch": statistics.mean(spent),
        "seconds": summary["seconds"]["total"],
    }


# All jobs ----------------------------------------------------------------------------------------


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The finished jobs' lines by key; of a job that ran twice the last one."""
    path = out / RESULTS
    lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    return {json.dumps(line["job"], sort_keys=True): line for line in lines}


def run_all(jobs: Sequence[Job], given: argparse.Namespace) -> None:
    """Every job in a process of its own, `given.processes` at a time, until the time is over."""
    began = time.monotonic()
    lines = read(given.out)
    done = {key for key, line in lines.items() if not (given.again and "error" in line)}
    waiting = deque(job for job in jobs if job.key not in done)
    num, running = len(waiting), dict[Job, subprocess.Popen[bytes]]()
    worlds = {(job.world, job.seed) for job in waiting}
    with ProcessPoolExecutor(given.processes) as pool:
        for drawn in [pool.submit(draw, *w, _root(given, *w), given.roadscene) for w in worlds]:
            drawn.result()
    try:
        while (waiting or running) and time.monotonic() - began < 60 * given.minutes:
            while waiting and len(running) < given.processes:
                job = waiting.popleft()
                command = [sys.executable, "-m", "benchmarks.couplings", *sys.argv[1:]]
                log = (given.scratch / "logs" / f"{job.folder}.log").open("w")
                running[job] = subprocess.Popen(
                    [*command, "--job", job.key], stdout=log, stderr=subprocess.STDOUT
                )
            for job in [job for job, process in running.items() if process.poll() is not None]:
                code = running.pop(job).returncode
                result = read(given.out).get(job.key, {"error": f"exit code {code}, see the log"})
                said = result.get("error") or f"{result['rank1']:.1f} / {result['mAP']:.1f}"
                print(f"{num - len(waiting) - len(running)}/{num} {job.folder}: {said}", flush=True)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()


def _root(given: argparse.Namespace, world: str, seed: int) -> Path:
    return given.root.resolve() if world == OWN else given.scratch / "worlds" / f"{world}-{seed}"


# The table ---------------------------------------------------------------------------------------

HEADS = (
    "row", "Rank-1", "mAP", "Rank-1 by seed", "mAP by seed", "clusters of both", "precision",
    "recall", "left out", "mutual nearest", "s per epoch",
)  # fmt: skip


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Markdown: for every world and encoder a table, rows in the order of `ROWS`."""
    whole = [line for line in lines if "error" not in line]
    rows = {line["job"]["row"] for line in whole}
    texts, order = [], [*ROWS, *sorted(rows - ROWS.keys())]  # some rows had other names before
    for key in sorted({_part(line) for line in whole}):
        of_key = sorted(
            (x for x in whole if _part(x) == key),
            key=lambda x: (order.index(x["job"]["row"]), x["job"]["seed"]),
        )
        texts += [f"\n### {', '.join(key)}\n", _line(HEADS), _line(["---"] * len(HEADS))]
        start = {x["job"]["seed"]: x["start"] for x in of_key if x["job"]["row"] in MAIN}
        texts += [_line(["start", *_scores([start[seed] for seed in start])])] if start else []
        for row, of_row in itertools.groupby(of_key, lambda x: str(x["job"]["row"])):
            own = list(of_row)
            shares = ("clusters_of_both", "precision", "recall", "outliers", "mutual_nearest")
            cells = [_mean([x[name] for x in own], "{:.2f}") for name in shares]
            cells.append(_mean([x["s_per_epoch"] for x in own], "{:.1f}"))
            texts.append(_line([row, *_scores(own), *cells]))
    return "\n".join(texts) + "\n"


def _part(line: dict[str, Any]) -> tuple[str, ...]:
    """World, encoder and what else a table is about."""
    return (line["job"]["world"], line["job"]["encoder"], *line["job"]["more"])


def _scores(results: Sequence[dict[str, Any]]) -> list[str]:
    cells = [[result[name] for result in results] for name in ("rank1", "mAP")]
    means = [
        f"{statistics.mean(x):.1f} ± {statistics.stdev(x) if len(x) > 1 else 0:.1f}" for x in cells
    ]
    return [*means, *(" / ".join(f"{value:.1f}" for value in x) for x in cells)]


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.mean(known)) if known else "-"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# The command -------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """What can be chosen; beginnings of options do, such as --seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="of results and the table")
    parser.add_argument("--table", choices=TABLES, default="joins")
    parser.add_argument("--rows", nargs="*", choices=ROWS, metavar="ROW")
    parser.add_argument("--worlds", nargs="*", choices=[*GENERATED, *REAL, OWN], metavar="WORLD")
    parser.add_argument("--seeds", nargs="*", type=int, default=[21])
    parser.add_argument("--encoders", nargs="*")
    parser.add_argument("--root", type=Path, help="a tree of your own: the world 'own'")
    parser.add_argument("--kind", default="sysu", help="its layout, data.kind")
    parser.add_argument("--roadscene", type=Path, help="a checkout of hanna-xu/RoadScene")
    parser.add_argument("--scratch", type=Path, help="of worlds and unfinished runs; OUT if not")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="then jobs are cut off")
    parser.add_argument("--again", action="store_true", help="jobs that failed, too")
    parser.add_argument("--set", nargs="*", default=[], help="key=value of every row")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run what is missing, then write and print the table."""
    given = arguments().parse_args()
    given.out, given.scratch = (x.resolve() for x in (given.out, given.scratch or given.out))
    for folder in (given.out, given.scratch / "logs", given.scratch / "worlds"):
        folder.mkdir(parents=True, exist_ok=True)
    if given.job:
        job = Job(**{**json.loads(given.job), "more": tuple(json.loads(given.job)["more"])})
        root, run_dir = _root(given, job.world, job.seed), given.scratch / "runs" / job.folder
        execute(job, root, run_dir, given.out, processes=given.processes)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # running jobs end with this process
    rows, worlds, encoders = TABLES[given.table]
    chosen = itertools.product(
        given.seeds,
        [OWN] if given.root else given.worlds or worlds,
        given.encoders or encoders,
        given.rows or rows,
    )
    more = ([f"data.kind={given.kind}"] if given.kind != "sysu" else []) + given.set
    jobs = [Job(row, world, seed, e, tuple(more)) for seed, world, e, row in chosen]
    run_all([job for job in jobs if job.makes_sense()], given)
    text = table(read(given.out).values())
    (given.out / TABLE).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
