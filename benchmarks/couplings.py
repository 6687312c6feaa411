"""What joins the modalities? Every way that this package has, one at a time, from one start.

    python -m benchmarks.couplings --out runs/couplings                  (generated identities)
    python -m benchmarks.couplings --out runs/own --root TREE            (any tree in SYSU's layout)
    python -m benchmarks.couplings --out runs/couplings --rows "BMIL" "BMIL + votes" --minutes 8

Each row trains in this process, on the GPU if there is one, without Ray. A row whose run directory
has a summary is read and not run again, so that the table can be made in pieces. Rows that turned
out worse stay: they answer the question too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from pipelines import config as configuration
from pipelines.training.local import train
from reid_core.datasets import synthetic

NO_TEXT = "cclnet.image_to_text=0"
SHARED = (NO_TEXT, "cclnet.matching.shared=true")
VIEW = ("cclnet.views.channels=adapt",)
VOTES = ("refine.labels=voted", "refine.weights=true", "refine.neighbours=12")
ROWS: dict[str, tuple[str, ...]] = {
    "no coupling": ("demo.yaml", NO_TEXT, "cclnet.swap.when=never"),
    "swap": ("demo.yaml", NO_TEXT),
    "swap in every step, as the authors": (
        "demo.yaml",
        NO_TEXT,
        "cclnet.swap.when=step",
        "cclnet.swap.order=sequential",
    ),
    "shared": ("demo.yaml", *SHARED),
    "shared + channel view": ("demo.yaml", *SHARED, *VIEW),
    "shared + two views": ("demo.yaml", *SHARED, "cclnet.views.visible=2"),
    "shared + votes": ("demo.yaml", *SHARED, *(f"cclnet.{v}" for v in VOTES)),
    "shared + teacher": ("demo.yaml", *SHARED, "cclnet.teacher=0.95"),
    "shared + decay": (
        "demo.yaml",
        *SHARED,
        "cclnet.align.schedule=coupled",
        "cclnet.align.warmup_epochs=0",
    ),
    **{
        f"shared, pairs: {method}": ("demo.yaml", *SHARED, f"cclnet.matching.method={method}")
        for method in ("mutual", "transport", "joint", "both", "either", "consistent", "proposed")
    },
    "either + channel view": ("demo.yaml", *SHARED, *VIEW, "cclnet.matching.method=either"),
    "BMIL": ("bmil_demo.yaml",),
    "BMIL, one channel view": (
        "bmil_demo.yaml",
        "bmil.views.visible=1",
        "bmil.views.channels=adapt",
        "bmil.views.jitter=0",
    ),
    "BMIL, plain views": ("bmil_demo.yaml", "bmil.views.visible=1", "bmil.views.jitter=0"),
    "BMIL without balance": ("bmil_demo.yaml", "bmil.clustering.balanced=false"),
    "BMIL, one prototype per cluster": ("bmil_demo.yaml", "bmil.memory.split=false"),
    "BMIL, mean bank alone": ("bmil_demo.yaml", "bmil.memory.banks=mean"),
    "BMIL, all scored": ("bmil_demo.yaml", "bmil.memory.scored=null"),
    "BMIL, joint steps alone": ("bmil_demo.yaml", "bmil.joint.separate_steps=false"),
    "BMIL, half of the visible images": ("bmil_demo.yaml", "bmil.clustering.subset=0.5"),
    **{
        f"BMIL on pairs: {together}": ("bmil_demo.yaml", f"bmil.clustering.together={together}")
        for together in ("assigned", "overlap", "both", "either")
    },
    "BMIL, a softmax for each modality": ("bmil_demo.yaml", "bmil.memory.softmax=modality"),
    "BMIL on pairs: assigned, a softmax for each modality": (
        "bmil_demo.yaml",
        "bmil.clustering.together=assigned",
        "bmil.memory.softmax=modality",
    ),
    "BMIL on pairs: either, a softmax for each modality": (
        "bmil_demo.yaml",
        "bmil.clustering.together=either",
        "bmil.memory.softmax=modality",
    ),
    "BMIL + votes": ("bmil_demo.yaml", *(f"bmil.{v}" for v in VOTES)),
    "BMIL + teacher": ("bmil_demo.yaml", "bmil.teacher=0.95"),
    "true identities": ("demo.yaml", NO_TEXT, "cclnet.labels=identities"),
    "true identities, BMIL's losses": ("bmil_demo.yaml", "bmil.labels=identities"),
}
HEADS = ("row", "Rank-1", "mAP", "pairs", "of them right", "left out", "s per epoch", "s")


def run(row: str, root: Path, out: Path, seed: int, more: list[str]) -> dict[str, Any]:
    """One row's summary and last line; trained only if it is not there yet."""
    folder = out / f"{''.join(c if c.isalnum() else '_' for c in row)}-{seed}"
    if not (folder / "summary.json").is_file():
        recipe, *overrides = ROWS[row]
        given = [f"data.root={root}", f"seed={seed}", *overrides, *more]
        train(configuration.load(Path(recipe), given), folder)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return summary | {"last": json.loads(lines[-1])}


def cells(row: str, result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    scores, last = result["rows"]["final"], result["last"]
    truth = last.get("truth", {})
    left_out = sum(last["outliers"].values()) / sum(last["rows"].values())
    right = truth.get("matching_accuracy")
    return [
        row,
        f"{scores['rank1']:.1f}",
        f"{scores['mAP']:.1f}",
        str(last["pairs"]),
        "-" if right is None else f"{right:.2f}",
        f"{left_out:.2f}",
        f"{sum(last['seconds'].values()):.1f}",
        f"{result['seconds'].get('total', 0):.0f}",
    ]


def main() -> None:
    """Runs rows until the time is over, prints each as it comes, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, help="a tree in SYSU-MM01's layout; else generated")
    parser.add_argument("--identities", type=int, default=500)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--minutes", type=float, default=1e9, help="no row begins after them")
    parser.add_argument("--set", nargs="*", default=[], help="key=value of every row")
    given = parser.parse_args()
    began, root = time.monotonic(), given.root or given.out / f"world-{given.seed}"
    if not root.exists():
        synthetic.write(
            root, num_identities=given.identities, seed=given.seed, layout="sysu", test_share=0.5
        )
    table = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    print("\n".join(table), flush=True)
    for row in given.rows:
        if time.monotonic() - began > 60 * given.minutes:
            break
        line = f"| {' | '.join(cells(row, run(row, root, given.out, given.seed, given.set)))} |"
        print(line, flush=True)
        table.append(line)
    (given.out / f"couplings-{given.seed}.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
