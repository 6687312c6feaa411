"""What each part of CSDN brings on generated identities, and how far it is above CCLNet there.

Every row runs on the same freshly drawn worlds, one per seed, last epoch; they are the worlds of
`benchmarks.demo_table`, and the rows of CCLNet are its runs.

    python -m benchmarks.csdn_ablation --out runs/learning
    python -m benchmarks.csdn_ablation --rows "CSDN: fusion" --seeds 11
"""

from __future__ import annotations

import statistics

from benchmarks import demo_table
from benchmarks.ablation import (
    SCORE_HEADS,
    Run,
    World,
    arguments,
    markdown,
    run_all,
    score_cells,
)

RECIPE = "csdn_demo.yaml"
ROWS: dict[str, tuple[str, ...]] = {
    "CSDN: no text": ("csdn.anchors=none",),
    "CSDN: one shared prompt": ("csdn.anchors=shared",),
    "CSDN: own-modality anchors": ("csdn.anchors=own",),
    "CSDN: mean of anchors": ("csdn.anchors=mean",),
    "CSDN: fusion": (),
    "CSDN: fusion, test images not mirrored": ("csdn.flip_test=false",),
}
RIVALS = ("CCLNet: swap epoch + prompts", "ours: shared prototype")


def runs_of(row: str, seeds: list[int]) -> list[Run]:
    """One run per seed."""
    worlds = [World(seed) for seed in seeds]
    if row in ROWS:
        return [Run(RECIPE, world, ROWS[row]) for world in worlds]
    return [demo_table.run_of(row, world, demo_table.BASE) for world in worlds]


def main() -> None:
    """Run and print."""
    given = arguments(__doc__, seeds=(11, 12, 13), rows=(*ROWS, *RIVALS)).parse_args()
    runs = {row: runs_of(row, given.seeds) for row in given.rows}
    everything = [run for own in runs.values() for run in own]
    results = run_all(everything, given.out, processes=given.processes)
    lines = []
    for row, own in runs.items():
        finished = [results[run.key] for run in own]
        starts = [statistics.mean(x["start"][name] for x in finished) for name in ("rank1", "mAP")]
        seconds = statistics.mean(x["seconds"] for x in finished)
        start = f"{starts[0]:.1f} / {starts[1]:.1f}"
        lines.append([row, start, *score_cells([x["last"] for x in finished]), f"{seconds:.0f}"])
    text = markdown(["row", "start Rank-1 / mAP", *SCORE_HEADS, "s per run"], lines)
    (given.out / "csdn_ablation.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
