"""How far a probability of a search is from the truth, on identities that nobody trained on.

Ours learns a freshly drawn world per seed from its fitting identities alone. Its cosines are then
given a meaning twice: by the world's validation identities, and by the clusters of the last epoch,
which need no label. Both are measured on the test identities.

    python -m benchmarks.calibration --out runs/calibration       a run of three minutes per seed
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks.ablation import World, markdown
from pipelines.config import run as configuration
from pipelines.evaluation.calibrate import calibrate
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.training import local
from reid_core.datasets import synthetic

RECIPE = "cross_demo.yaml"
LABELS = {"val": "validation identities", "pseudo": "clusters of the last epoch"}
HEADS = (
    "fitted on",
    "pair",
    "equal pairs in the fit, %",
    "ECE as they come",
    "ECE, half of the pairs equal",
    "per seed",
)


def trained(seed: int, out: Path) -> Path:
    """A run that is finished, trained where it is not there yet."""
    world = World(seed)
    root = world.folder(out)
    synthetic.write(
        root,
        num_identities=world.num_identities,
        seed=seed,
        layout="sysu",
        test_share=world.test_share,
        workers=2,
    )
    run = out / "runs" / f"seed-{seed}"
    if not (run / "summary.json").is_file():
        given = [f"data.root={root}", f"seed={seed}", "data.fit=train", "evaluation.start=false"]
        local.train(configuration.load(Path(RECIPE), given), run)
    return run


def measured(run: Path, labels: str) -> dict[str, tuple[float, float, float]]:
    """Per pair of modalities: share of equal pairs in the fit, and both errors of `eval`."""
    fitted = calibrate(run, labels=labels)
    result = evaluate_checkpoint(run).calibration
    return {
        name: (fitted.maps[name].prior, row["ece"], row["ece_balanced"])
        for name, row in result.items()
    }


def main() -> None:
    """Train, calibrate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    given = parser.parse_args()
    runs = [trained(seed, given.out) for seed in given.seeds]
    lines = []
    for labels, words in LABELS.items():
        tables = [measured(run, labels) for run in runs]
        for name in tables[0]:
            prior, natural, balanced = zip(*(table[name] for table in tables), strict=True)
            lines.append(
                [
                    words,
                    name,
                    f"{100 * statistics.mean(prior):.2f}",
                    f"{statistics.mean(natural):.4f}",
                    f"{statistics.mean(balanced):.3f}",
                    " / ".join(f"{value:.3f}" for value in balanced),
                ]
            )
    print(markdown(HEADS, lines))


if __name__ == "__main__":
    main()
