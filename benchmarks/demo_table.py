"""Does it learn? Every row of the demo's table, over seeds and difficulty settings of the world.

search   every row gets the same small search over learning rate, eps and momentum on one world of
         validation identities that no reported number uses;
confirm  the chosen setting of every row runs on freshly drawn worlds, one per seed; last epoch.

    python -m benchmarks.demo_table --out runs/learning --difficulty default easy hard
    python -m benchmarks.demo_table --rows "ours: shared prototype" --no-search --seeds 11
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.ablation import (
    SCORE_HEADS,
    Results,
    Run,
    World,
    arguments,
    markdown,
    run_all,
    score_cells,
)

SEARCH_SEED = 1000
RECIPE = "demo.yaml"
NO_TEXT = "cclnet.image_to_text=0"
ROWS: dict[str, tuple[str, ...]] = {
    "no coupling": (NO_TEXT, "cclnet.swap.when=never"),
    "swap epoch_once": (NO_TEXT, "cclnet.swap.when=epoch_once"),
    "swap epoch": (NO_TEXT, "cclnet.swap.when=epoch"),
    "swap step": (NO_TEXT, "cclnet.swap.when=step"),
    "CCLNet: swap epoch + prompts": ("cclnet.swap.when=epoch",),
    "ours: shared prototype": (NO_TEXT, "cclnet.matching.shared=true"),
    "true identities": (NO_TEXT, "cclnet.labels=identities"),
}

BASE = {"cclnet.align.lr": 1e-3, "cclnet.clustering.eps": 0.6, "cclnet.memory.momentum": 0.5}
SETTINGS: tuple[dict[str, float], ...] = (
    BASE,
    {**BASE, "cclnet.align.lr": 5e-4},
    {**BASE, "cclnet.clustering.eps": 0.5},
    {**BASE, "cclnet.memory.momentum": 0.2},
)
HEADS = (*SCORE_HEADS, "matching accuracy, last epoch", "lr, eps, momentum", "s per run")


def run_of(row: str, world: World, setting: dict[str, float]) -> Run:
    """The training of one row with one setting."""
    chosen = (f"{key}={value}" for key, value in setting.items())
    return Run(RECIPE, world, (*ROWS[row], *chosen))


def best_setting(row: str, results: Results) -> dict[str, float]:
    """What reached the highest Rank-1 + mAP on the validation identities."""

    def goal(setting: dict[str, float]) -> float:
        last = results[run_of(row, World(SEARCH_SEED), setting).key]["last"]
        return last["rank1"] + last["mAP"]

    return max(SETTINGS, key=goal)


def search_table(rows: Sequence[str], results: Results) -> str:
    """Rank-1 / mAP of every row with every setting."""
    lines = []
    for row in rows:
        lasts = [results[run_of(row, World(SEARCH_SEED), s).key]["last"] for s in SETTINGS]
        lines.append([row, *(f"{x['rank1']:.1f} / {x['mAP']:.1f}" for x in lasts)])
    return markdown(["lr, eps, momentum", *map(_short, SETTINGS)], lines)


def table(
    difficulty: str, seeds: Sequence[int], chosen: dict[str, dict[str, float]], results: Results
) -> str:
    """Every chosen row of one difficulty."""
    worlds = [World(seed, difficulty=difficulty) for seed in seeds]
    lines = []
    for row in chosen:
        own = [results[run_of(row, world, chosen[row]).key] for world in worlds]
        if not lines:
            lines.append(["start", *score_cells([x["start"] for x in own]), "", "", ""])
            chance = statistics.mean(x["chance"] for x in own)
        accuracy = [x["epochs"][-1]["truth"].get("matching_accuracy") for x in own]
        known = [value for value in accuracy if value is not None]
        lines.append(
            [
                row,
                *score_cells([x["last"] for x in own]),
                f"{statistics.mean(known):.2f}" if known else "-",
                _short(chosen[row]),
                f"{statistics.mean(x['seconds'] for x in own):.0f}",
            ]
        )
    title = f"### World: {difficulty} (chance Rank-1 {chance:.1f} %)\n\n"
    return title + markdown(["row", *HEADS], lines)


def _short(setting: dict[str, float]) -> str:
    return ", ".join(f"{value:g}" for value in setting.values())


def main() -> None:
    """Search, confirm, print."""
    parser = arguments(__doc__, seeds=(11, 12, 13), rows=ROWS)
    parser.add_argument("--difficulty", nargs="*", default=["default"])
    parser.add_argument("--no-search", action="store_true", help="every row with the first setting")
    given = parser.parse_args()
    text, chosen = [], dict.fromkeys(given.rows, BASE)
    if not given.no_search:
        world = World(SEARCH_SEED)
        search = [run_of(row, world, setting) for row in given.rows for setting in SETTINGS]
        results = run_all(search, given.out, processes=given.processes)
        chosen = {row: best_setting(row, results) for row in given.rows}
        text.append(search_table(given.rows, results))
        print(text[-1], flush=True)
    for difficulty in given.difficulty:
        worlds = [World(seed, difficulty=difficulty) for seed in given.seeds]
        runs = [run_of(row, world, chosen[row]) for world in worlds for row in chosen]
        results = run_all(runs, given.out, processes=given.processes)
        text.append(table(difficulty, given.seeds, chosen, results))
        print(text[-1], flush=True)
    (given.out / "demo_table.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
