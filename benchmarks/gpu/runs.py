"""Short runs of every method at its published size, and a probe within their steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.settings import Settings
from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from pipelines.data import gate
from pipelines.data.prepare import prepare
from pipelines.training import in_process, step
from pipelines.training.progress import Progress
from reid_core.datasets import synthetic

Take = Callable[..., None]
_CLUSTERS = ("clustering.k1=8", "clustering.k2=3", "clustering.min_samples=2")
_SHORT = {
    "cclnet": (
        *_CLUSTERS,
        "swap.start_epoch=0",
        *(f"{s}.{k}" for s in ("prepare", "align") for k in ("epochs=1", "batches_per_epoch=3")),
        "prompts.epochs=1",
    ),
    "csdn": (
        "prompts.epochs=1",
        "fusion.epochs=1",
        "images.epochs=1",
        "images.batches_per_epoch=3",
    ),
    "cpcl": (*_CLUSTERS, "train.epochs=1", "train.warmup_epochs=0"),
    "bmil": (
        *_CLUSTERS,
        *(f"{s}.{k}" for s in ("intra", "joint") for k in ("epochs=1", "batches_per_epoch=3")),
    ),
}
_TINY = {
    "cclnet": tuple(
        f"{s}.{k}" for s in ("prepare", "align") for k in ("clusters_per_batch=4", "instances=2")
    ),
    "csdn": ("images.identities_per_batch=4", "images.instances=2"),
    "cpcl": ("train.batch_size=16",),
    "bmil": tuple(
        f"{s}.{k}" for s in ("intra", "joint") for k in ("clusters_per_batch=4", "instances=2")
    ),
}
RECIPES = {
    "cclnet": ("cclnet_sysu.yaml", "demo.yaml"),
    "csdn": ("csdn_sysu.yaml", "csdn_demo.yaml"),
    "cpcl": ("cpcl_cuhk.yaml", "cpcl_demo.yaml"),
    "bmil": ("bmil_sysu.yaml", "bmil_demo.yaml"),
}
"""Per method the recipe of the published size and the one of the small model."""


def short_config(
    settings: Settings, method: str, *overrides: str, small: bool, pretrained: str = "null"
) -> RunConfig:
    """A recipe cut to an epoch of a few steps per stage, on a generated tree.

    Args:
        settings: of the benchmark.
        method: name of a method.
        overrides: later ones win.
        small: the small model at its size instead of the published one.
        pretrained: weights.
    """
    recipe = RECIPES[method][small]
    kind = configuration.load(Path(recipe), ["data.root=/"]).data.kind
    count = 20 if settings.tiny or small else 60
    root = settings.scratch / f"{kind}-{count}"
    synthetic.write(
        root, num_identities=count, seed=4, layout=kind, height=96, workers=os.cpu_count() or 1
    )
    short = [
        f"{method}.{setting}" for setting in (*_SHORT[method], *(_TINY[method] * settings.tiny))
    ]
    if settings.tiny:
        overrides = ("model.height=32", "model.width=16", "augmentation.pad=1", *overrides)
    given = [f"data.root={root}", f"model.pretrained={pretrained}", "evaluation.start=false"]
    return configuration.load(Path(recipe), [*given, *short, *overrides])


def train_here(settings: Settings, config: RunConfig, name: str) -> tuple[Progress, Path]:
    """Train on the device from the first epoch on; returns the progress and the run directory."""
    there = run_dir(settings, name)
    shutil.rmtree(there, ignore_errors=True)
    readers = max(1, min(16, (os.cpu_count() or 1) - 1))
    prepared = prepare(config, gate.check_data(config), lambda files, modality: [])
    return in_process.fit(config, prepared, there, device=settings.device, readers=readers), there


def run_dir(settings: Settings, name: str) -> Path:
    """Where `train_here` keeps a run."""
    return settings.scratch / "runs" / name


@contextmanager
def probed(probe: Callable[..., None], *, at: int = 2) -> Iterator[None]:
    """Call `probe(take, stage, ...)` instead of the at-th step of every streamed stage."""
    take, steps = step.take, dict[str, int]()

    def watched(
        stage: Any, model: Any, optimizer: Any, batch: Any, *rest: Any, **named: Any
    ) -> None:
        name = stage_name(stage)
        steps[name] = steps.get(name, 0) + 1
        if steps[name] == at and isinstance(batch, dict):
            probe(take, stage, model, optimizer, batch, settings=named["settings"])
        take(stage, model, optimizer, batch, *rest, **named)

    step.take = watched
    try:
        yield
    finally:
        step.take = take


def stage_name(stage: Any) -> str:
    """A stage by its name, or its class where it has none."""
    return str(getattr(stage, "name", type(stage).__name__)).lower()


def num_images(batch: dict[Any, Any]) -> int:
    """Images of a batch, all views of all modalities."""
    return sum(len(part.images) for part in batch.values())


def free() -> None:
    """Give back what an earlier run left on the device."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
