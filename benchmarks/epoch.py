"""What does Ray cost? One epoch of the demo, phase by phase, against a plain loop without Ray.

Every variant trains the demo's "align" stage (no text) on the same generated identities in a
process
tree of its own: the plain loop (one process, torch DataLoader, all cores) is the rival; the product
runs with 1 and with 2 workers. With --overlap a worker on one core, which leaves the others to the
memory actor as a GPU would, runs twice: as it is, and handing in its features when both modalities
are embedded, so that no clustering overlaps with embedding. "idle" is what the train workers wait
for between the epochs: cluster, match and plan. The first two epochs warm up and are left out.

    python -m benchmarks.epoch [--identities 500] [--epochs 6] [--only "Ray, 1 worker"]
    python -m benchmarks.epoch --overlap --identities 2500 --epochs 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.watched import run_module

WARM = 2
PHASES = ("embed", "cluster", "match", "plan", "input", "step", "checkpoint")
IDLE = ("cluster", "match", "plan")
VARIANTS = ("plain loop, DataLoader", "Ray, 1 worker", "Ray, 2 workers")
NO_OVERLAP = "Ray, 1 worker on 1 core, no overlap"
OVERLAPS = ("Ray, 1 worker on 1 core", NO_OVERLAP)


def overrides(root: Path, epochs: int, workers: int, cores: int) -> list[str]:
    """The demo's settings, images only, without evaluation."""
    return [
        f"data.root={root}",
        "cclnet.image_to_text=0",
        f"cclnet.align.epochs={epochs}",
        "evaluation.start=false",
        f"trainer.num_workers={workers}",
        f"trainer.cpus_per_worker={max(1, cores // workers)}",
    ]


def run_variant(variant: str, root: Path, epochs: int, out: Path) -> None:
    """Train one variant in this process; metrics.jsonl in `out` is the result."""
    from pipelines.config import run as configuration

    workers = 2 if "2" in variant else 1
    cores = 1 if variant in OVERLAPS else os.cpu_count() or 1
    config = configuration.load(Path("demo.yaml"), overrides(root, epochs, workers, cores))
    if variant.startswith("Ray"):
        from pipelines.training import driver, group

        if variant == NO_OVERLAP:
            hand_in_late(group)
        driver.train(config, out, sys.argv)
        return
    import torch

    from benchmarks.plain_loop import train as train_plainly
    from pipelines.data import gate
    from pipelines.data.prepare import prepare

    torch.set_num_threads(os.cpu_count() or 1)
    prepared = prepare(config, gate.check_data(config), lambda files, modality: [])
    train_plainly(config, prepared, out, processes=2)


def hand_in_late(group: Any) -> None:
    """Workers keep their features until they ask for the epoch; this travels to them by value."""
    work = group.work

    def late_work(settings: dict[str, Any]) -> None:
        from pipelines.training.actor import RemoteBank

        add_features, begin_epoch = RemoteBank.add_features, RemoteBank.begin_epoch
        waiting: list[tuple] = []

        def begin_late(self: RemoteBank, *key: Any) -> Any:
            while waiting:
                add_features(self, *waiting.pop(0))
            return begin_epoch(self, *key)

        RemoteBank.add_features = lambda self, *shard: waiting.append(shard)  # type: ignore
        RemoteBank.begin_epoch = begin_late  # type: ignore[method-assign]
        work(settings)

    group.work = late_work


def measure(variant: str, root: Path, epochs: int, folder: Path) -> dict[str, Any]:
    """Start a variant and watch the memory of its process tree."""
    out = folder / variant.replace(" ", "-").replace(",", "")
    arguments = ["--variant", variant, "--root", str(root), "--epochs", str(epochs)]
    peak = run_module("benchmarks.epoch", [*arguments, "--out", str(out)])
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    warm = [line["seconds"] for line in lines[WARM:]]
    seconds = {p: statistics.mean(line.get(p, 0.0) for line in warm) for p in PHASES}
    return {"seconds": seconds, "total": sum(seconds.values()), "peak": peak}


def table(results: dict[str, dict[str, Any]], images: int) -> str:
    """Markdown: a line per variant, the ratio against the plain loop at the end."""
    rival = results.get(VARIANTS[0], {}).get("total")
    head = ["seconds per epoch", *PHASES, "total", "idle", "images/s in step + input", "peak MiB"]
    head.append("ratio")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for variant, result in results.items():
        seconds = result["seconds"]
        rate = images / (seconds["step"] + seconds["input"])
        cells = [variant, *(f"{seconds[phase]:.2f}" for phase in PHASES), f"{result['total']:.2f}"]
        cells.append(f"{sum(seconds[phase] for phase in IDLE):.2f}")
        cells += [f"{rate:.0f}", f"{result['peak'] / 2**20:.0f}"]
        cells.append(f"{result['total'] / rival:.2f}" if rival else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """All variants in one run, or one variant when started by `measure`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", choices=VARIANTS, action="append")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--variant", choices=(*VARIANTS, *OVERLAPS), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.variant:
        run_variant(arguments.variant, arguments.root, arguments.epochs, arguments.out)
        return
    from reid_core.datasets import synthetic

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        synthetic.write(
            root, num_identities=arguments.identities, seed=0, test_share=0.5, workers=2
        )
        chosen = OVERLAPS if arguments.overlap else arguments.only or VARIANTS
        result = {v: measure(v, root, arguments.epochs, Path(folder)) for v in chosen}
    images = 2 * 16 * 4 * 30
    print(table(result, images))


if __name__ == "__main__":
    main()
