"""Does Ray Data keep up? Decoded, augmented batches per second, against a torch DataLoader.

JPEG files of 288 x 144, 4 identities x 16 images of each modality in a global batch, no training.
Both sides decode the same plan with the same decoder and transforms in the same number of
processes, and hand the same checked uint8 batches to one consumer. The DataLoader keeps its
processes, prefetches and hands tensors over in shared memory. Ours runs a second time with images
kept decoded, as in training (`data.cache_bytes`). Each side runs in a process tree of its own; the
first epoch warms up, and fills the kept images; the numbers are medians of the others.

    python -m benchmarks.input_pipeline [--processes 2] [--batches 100] [--epochs 4]

Rates need a quiet machine: on a busy one the consumer lags, and what was decoded ahead meanwhile
counts as speed. CPU time per image, of the whole process tree over whole epochs, says more there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from pipelines.data.decoded import Decoded

HEIGHT, WIDTH = 288, 144
IDENTITIES, INSTANCES = 4, 16
SKIP = 8  # batches of an epoch before the steady state
RIVAL, PRODUCT, KEPT = "torch DataLoader", "Ray Data plan", "Ray Data plan, images kept decoded"
GOAL_RATIO, GOAL_FIRST_S = 0.8, 1.5


def parts(root: Path, batches: int) -> tuple[Any, Any, Any, Any]:
    """Plan, inputs, transforms and batch shape: all that both sides share."""
    import numpy as np

    from pipelines.data.inputs import Inputs
    from pipelines.data.plan import BatchShape, Plan
    from reid_core import sampling
    from reid_core.augmentation import Augmentation
    from reid_core.datasets import sysu
    from reid_core.methods import METHODS
    from reid_core.transforms import TrainTransform

    views = METHODS["cclnet"].augmentations(METHODS["cclnet"].config(), Augmentation(grayscale=0.5))
    split = sysu.read(root).train
    paths, rows, labels, seeds = {}, {}, {}, {}
    for number, m in enumerate(views):
        own = split.rows(m)
        paths[m] = np.array([split.samples[i].image for i in own])
        # No file twice within a few batches, as in data of real size: neither side decodes less.
        order = np.random.default_rng(number).permutation(len(own))
        rows[m] = np.resize(order, (batches, IDENTITIES * INSTANCES))
        labels[m] = np.tile(np.repeat(np.arange(IDENTITIES), INSTANCES), (batches, 1))
        seeds[m] = sampling.augmentation_seeds(rows[m].shape, seed=number, epoch=0)
    shape = BatchShape(dict.fromkeys(views, IDENTITIES * INSTANCES), dict.fromkeys(views, 1))
    transforms = {m: [TrainTransform(view) for view in each] for m, each in views.items()}
    return (
        Plan(rows, labels, seeds),
        Inputs(root, paths, height=HEIGHT, width=WIDTH),
        transforms,
        shape,
    )


def rival_epochs(
    plan: Any, inputs: Any, transforms: Any, *, processes: int, per_block: int
) -> Callable[[], Iterator[Any]]:
    """Opens epochs of a DataLoader."""
    import torch
    from torch.utils.data import DataLoader

    from benchmarks.plain_loop import PlanBatches

    def as_tensors(columns: dict[str, Any]) -> dict[str, Any]:
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    loader = DataLoader(
        PlanBatches(plan, inputs, transforms),
        batch_size=None,
        collate_fn=as_tensors,
        num_workers=processes,
        prefetch_factor=4,
        persistent_workers=True,
    )
    return lambda: ({n: c.numpy() for n, c in columns.items()} for columns in loader)


def product_epochs(
    plan: Any, inputs: Any, transforms: Any, *, processes: int, per_block: int
) -> Callable[[], Iterator[Any]]:
    """Opens epochs of the stream that training uses, as one training worker gets it."""
    import ray

    from pipelines.data.datasource import plan_dataset

    ray.init(address="local", num_cpus=processes, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    size = sum(rows.shape[1] for rows in plan.rows.values())

    def epoch() -> Iterator[Any]:
        stream = plan_dataset(
            plan,
            inputs,
            transforms,
            rank=0,
            world=1,
            batches_per_block=per_block,
            num_tasks=processes,
            node=ray.get_runtime_context().get_node_id(),
        )
        return iter(stream.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=2))

    return epoch


def measure(variant: str, root: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Per warm epoch: images per second, seconds to the first batch, CPU seconds per image."""
    from pipelines.data.batches import training_batches

    plan, inputs, transforms, shape = parts(root, arguments.batches)
    decoded = _room_for_all(inputs) if variant == KEPT else None
    inputs = replace(inputs, decoded=decoded)
    opener = rival_epochs if variant == RIVAL else product_epochs
    options = {"processes": arguments.processes, "per_block": arguments.batches_per_block}
    epochs = opener(plan, inputs, transforms, **options)
    images = shape.num_lines(0, 1)
    result = []
    for _ in range(arguments.epochs):
        began, used = time.perf_counter(), _cpu_seconds()
        arrived = []
        for _ in training_batches(epochs(), shape=shape, rank=0, world=1):
            arrived.append(time.perf_counter())
        steady = images * (arguments.batches - SKIP)
        result.append(
            {
                "rate": steady / (arrived[-1] - arrived[SKIP - 1]),
                "first": arrived[0] - began,
                # of the whole epoch: what is decoded ahead of the steady state counts too
                "cpu": (_cpu_seconds() - used) / (images * arguments.batches),
            }
        )
    if decoded is not None:
        decoded.remove()
    return result[1:]


def _room_for_all(inputs: Any) -> Decoded | None:
    """Room for every image."""
    from pipelines.data.decoded import Decoded

    num_images = sum(map(len, inputs.paths.values()))
    size = {"height": inputs.height, "width": inputs.width}
    return Decoded.holding(num_images, token=f"bench-{os.getpid()}", num_bytes=2**32, **size)


def _cpu_seconds() -> float:
    """Of this process and all its descendants, those that have ended included."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        except psutil.Error:
            continue
    return total


def table(result: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a line per side and, at the end, whether the goals are met."""
    medians = {
        name: {key: statistics.median(one[key] for one in epochs) for key in epochs[0]}
        for name, epochs in result.items()
    }
    lines = [
        "| | images/s | ratio | CPU ms per image | first batch of a warm epoch, s |",
        "|---|---|---|---|---|",
    ]
    rival = medians[RIVAL]["rate"]
    for name, median in medians.items():
        lines.append(
            f"| {name} | {median['rate']:.0f} | {median['rate'] / rival:.2f} "
            f"| {1000 * median['cpu']:.2f} | {median['first']:.2f} |"
        )
    product = medians[KEPT]  # what training reads from its second epoch on
    met = product["rate"] / rival >= GOAL_RATIO and product["first"] < GOAL_FIRST_S
    lines.append(
        f"\nGoal: ratio at least {GOAL_RATIO}, first batch under {GOAL_FIRST_S} s: "
        + ("met" if met else "not met")
    )
    return "\n".join(lines)


def main() -> None:
    """Both sides in one run, or one of them when started by itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batches-per-block", type=int, default=4)
    parser.add_argument("--identities", type=int, default=60)
    parser.add_argument(
        "--root", type=Path, help="Of drawn identities; they are drawn anew without."
    )
    parser.add_argument("--variant", choices=(RIVAL, PRODUCT, KEPT))
    arguments = parser.parse_args()
    if arguments.variant:
        sys.stdout.write(json.dumps(measure(arguments.variant, arguments.root, arguments)))
        sys.stdout.flush()
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.root is None:
            from reid_core.datasets import synthetic

            arguments.root = Path(folder) / "identities"
            synthetic.write(
                arguments.root,
                num_identities=arguments.identities,
                seed=0,
                height=HEIGHT,
                workers=arguments.processes,
            )
        options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(arguments).items()]
        options = [option for option in options if not option.startswith("--variant")]
        result = {}
        for variant in (RIVAL, PRODUCT, KEPT):
            child = subprocess.run(
                [sys.executable, __file__, *options, f"--variant={variant}"],
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parent.parent),
                    "RAY_AUTH_MODE": "disabled",
                },
                stdout=subprocess.PIPE,
                check=True,
            )
            result[variant] = json.loads(child.stdout.decode().splitlines()[-1])
    sys.stdout.write(table(result) + "\n")


if __name__ == "__main__":
    main()
