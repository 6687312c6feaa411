"""What each part of CPCL brings on generated identities with captions.

Every row starts from the same weights and runs on the same freshly drawn worlds, one per seed, with
the same steps, batches and masked words; last epoch. Contrast alone is run with several learning
rates and its best mean counts, so that no rate is chosen for CPCL only.

    python -m benchmarks.cpcl_ablation --out runs/learning
    python -m benchmarks.cpcl_ablation --rows "+ mining: CPCL" --seeds 1
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.ablation import (
    SCORE_HEADS,
    Results,
    Run,
    World,
    arguments,
    markdown,
    per_seed,
    run_all,
    score_cells,
)

RECIPE = "cpcl_demo.yaml"
CONTRAST = "cpcl.matching.instance=itc"
NO_MINING = "cpcl.mining.sides=none"
WITHIN = ("cpcl.lambda1=0.5", "cpcl.memory.temperature=0.1")
RATES = ("5.0e-4", "1.0e-3", "2.0e-3")
BASELINES: dict[str, tuple[str, ...]] = {
    f"contrast alone, lr {rate}": (CONTRAST, NO_MINING, "cpcl.lambda2=0", f"cpcl.train.lr={rate}")
    for rate in RATES
}
ROWS: dict[str, tuple[str, ...]] = {
    **BASELINES,
    "+ prototypes within a modality": (CONTRAST, NO_MINING, *WITHIN, "cpcl.lambda2=0"),
    "+ many-to-many instances": (NO_MINING, "cpcl.lambda2=0"),
    "+ prototypes across modalities": (NO_MINING,),
    "+ mining: CPCL": (),
    "CPCL, prototypes within a modality too": WITHIN,
    "CPCL, soft targets": ("cpcl.matching.targets=soft",),
    "true identities, upper bound": ("cpcl.labels=identities",),
}


def runs_of(row: str, seeds: list[int]) -> list[Run]:
    """One run per seed."""
    worlds = [World(seed, num_identities=300, layout="icfg", test_share=0.3) for seed in seeds]
    return [Run(RECIPE, world, ROWS[row]) for world in worlds]


def table(rows: list[str], seeds: list[int], results: Results) -> str:
    """Every row, and its gain over the best baseline, where one is among the rows."""
    finished = {row: [results[run.key] for run in runs_of(row, seeds)] for row in rows}
    lasts = {row: [x["last"] for x in own] for row, own in finished.items()}
    rank1 = {row: [score["rank1"] for score in scores] for row, scores in lasts.items()}
    baselines = [row for row in rows if row in BASELINES]
    best = max(baselines, key=lambda row: statistics.mean(rank1[row]), default="")
    starts = [x["start"] for x in finished[rows[0]]]
    lines = [["pretrained encoder", *score_cells(starts), _inverse(starts), "", "", ""]]
    for row, own in finished.items():
        compared = best and row not in BASELINES
        gains = [a - b for a, b in zip(rank1[row], rank1[best], strict=True)] if compared else []
        lines.append(
            [
                row,
                *score_cells(lasts[row]),
                _inverse(lasts[row]),
                per_seed(gains, "+"),
                _outliers(own),
                f"{statistics.mean(x['seconds'] for x in own):.0f}",
            ]
        )
    heads = [
        "mINP",
        f"Rank-1 over {best!r}" if best else "no baseline",
        "outliers: images; sentences",
        "s per run",
    ]
    return markdown(["row", *SCORE_HEADS, *heads], lines)


def _inverse(scores: list[dict[str, float]]) -> str:
    return f"{statistics.mean(score['mINP'] for score in scores):.1f}"


def _outliers(own: list[dict[str, Any]]) -> str:
    """Mean number of images and of sentences before -> after mining in the last epoch."""
    cells = []
    for side in ("visible", "text"):
        names = [f"{side}_outliers_{when}_mining" for when in ("before", "after")]
        means = [statistics.mean(x["epochs"][-1][name] for x in own) for name in names]
        cells.append(" -> ".join(f"{mean:.0f}" for mean in means))
    return "; ".join(cells)


def main() -> None:
    """Run and print."""
    given = arguments(__doc__, seeds=(1, 2, 3), rows=ROWS).parse_args()
    runs = [run for row in given.rows for run in runs_of(row, given.seeds)]
    text = table(given.rows, given.seeds, run_all(runs, given.out, processes=given.processes))
    (given.out / "cpcl_ablation.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
