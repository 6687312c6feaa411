"""The small runs that `benchmarks.kills` and `benchmarks.spot` kill, on a Ray of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STEPS = 3
LIMIT_S = 900


@dataclass(frozen=True)
class Run:
    """A small run: its identities' layout, its epochs per stage, the stages that stream."""

    method: str
    recipe: str
    layout: str
    epochs: dict[str, int]
    streamed: tuple[str, ...]
    settings: str
    encoder: str = "crossreid-small"


RUNS = {
    "cclnet": Run(
        "cclnet",
        "demo.yaml",
        "sysu",
        {"prepare": 1, "prompts": 2, "align": 2},
        ("prepare", "align"),
        "prompts.batch_size=32 clustering.k1=8 clustering.min_samples=2 "
        f"prepare.batches_per_epoch={STEPS} prepare.clusters_per_batch=4 "
        f"align.batches_per_epoch={STEPS} align.clusters_per_batch=4",
    ),
    "csdn": Run(
        "csdn",
        "csdn_demo.yaml",
        "sysu",
        {"prompts": 1, "fusion": 1, "images": 2},
        ("images",),
        f"prompts.batch_size=32 fusion.batch_size=32 images.batches_per_epoch={STEPS} "
        "images.identities_per_batch=4 images.instances=2",
    ),
    "cpcl": Run(
        "cpcl",
        "cpcl_demo.yaml",
        "icfg",
        {"train": 2},
        ("train",),
        "train.batch_size=16 clustering.min_samples=2",
    ),
    "bmil": Run(
        "bmil",
        "bmil_demo.yaml",
        "sysu",
        {"intra": 1, "joint": 2},
        ("intra", "joint"),
        "clustering.k1=8 clustering.min_samples=2 clustering.joint_eps=0.5 "
        f"intra.batches_per_epoch={STEPS} intra.clusters_per_batch=4 "
        f"joint.batches_per_epoch={STEPS} joint.clusters_per_batch=4",
        "crossreid-small-vit",
    ),
}
RUNS["cclnet-vit"] = replace(RUNS["cclnet"], encoder="crossreid-small-vit")
RUNS["bmil-resnet"] = replace(RUNS["bmil"], encoder="crossreid-small")


def overrides(run: Run, data: Path, address: str) -> list[str]:
    """All stages of a recipe in a few steps."""
    return [
        *(f"{run.method}.{stage}.epochs={epochs}" for stage, epochs in run.epochs.items()),
        *(f"{run.method}.{setting}" for setting in run.settings.split()),
        f"data.root={data / run.layout}",
        f"model.name={run.encoder}",
        "model.height=32",
        "model.width=16",
        "evaluation.start=false",
        "trainer.num_workers=2",
        "trainer.batches_per_block=2",
        "trainer.max_failures=1",
        f"ray.address={address}",
    ]


def launch(command: list[str], scratch: Path) -> int:
    """Run the child to its end; returns its exit code."""
    with (scratch / "log.txt").open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=log, timeout=LIMIT_S).returncode


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A Ray of our own for all runs; yields its address."""
    os.environ |= {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "RAY_AUTH_MODE": "disabled",
    }
    import ray  # reads the environment

    started: Any = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        _temp_dir=str(folder),
    )
    try:
        yield started.address_info["gcs_address"]
    finally:
        ray.shutdown()
