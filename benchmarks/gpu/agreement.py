"""The GPU against the CPU: the same numbers within stated tolerances.

Runs of every method start from the small CLIP that ships with the package, on the same generated
identities, an epoch of a few steps per stage, on either device, in true float32. What is compared
comes before the devices can drift apart: labels of each stage's first epoch, its mean losses, the
scores of the encoder before training and after the last stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.gpu import runs
from benchmarks.gpu.search import world
from benchmarks.gpu.settings import Settings
from pipelines.distributed.precision import set_tf32
from pipelines.runs import runlog
from reid_core import clustering, memory
from reid_core.knn import search

LOSSES, SCORES = 1e-3, 1.0
"""Tolerances: of a stage's mean losses, relative; of scores, in points."""


def cases(settings: Settings) -> Iterator[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]:
    """Parts first, then whole runs."""
    yield "neighbors and labels", partial(neighbors, settings)
    yield "memory", partial(memories, settings)
    for method in runs.RECIPES:
        yield method, partial(whole_run, settings, method)


def neighbors(settings: Settings) -> Iterator[dict[str, Any]]:
    """Search and clustering of the same rows."""
    set_tf32(False)
    num = 1000 if settings.tiny else 10_000
    there = world(settings, num, 256)
    here = there.cpu().numpy()
    one, other = search.nearest(here, 30), search.nearest(there, 30)
    labels = clustering.cluster(here), clustering.cluster(there)
    yield {
        "rows": num,
        "same neighbors": float((one.rows == other.rows).mean()),
        "largest difference of cosines": float(np.abs(one.similarity - other.similarity).max()),
        "same labels": float((labels[0] == labels[1]).mean()),
        "agrees": bool((one.rows == other.rows).all() and (labels[0] == labels[1]).all()),
    }


def memories(settings: Settings) -> Iterator[dict[str, Any]]:
    """One update with repeated labels and outliers, and a swap."""
    random = torch.Generator().manual_seed(1)
    bank = functional.normalize(torch.randn(200, 512, generator=random))
    rows = functional.normalize(torch.randn(128, 512, generator=random))
    labels = torch.randint(-1, 16, (128,), generator=random)
    banks = []
    for device in (torch.device("cpu"), settings.device):
        one = memory.ClusterMemory(bank, momentum=0.1, temperature=0.05).to(device)
        most = int(torch.bincount(labels[labels >= 0]).max())
        one.update(rows.to(device), labels.to(device), most=most)
        pairs = np.stack([np.arange(50), np.arange(50)[::-1]], axis=1).copy()
        swapped = memory.swap(one.bank[:100], one.bank[100:], pairs)
        banks.append(torch.cat([one.bank, *swapped]).cpu())
    difference = float((banks[0] - banks[1]).abs().max())
    yield {"what": "update and swap", "largest difference": difference, "agrees": difference < 1e-6}


def whole_run(settings: Settings, method: str) -> Iterator[dict[str, Any]]:
    """Both devices, and what differs."""
    config = runs.short_config(
        settings, method, "evaluation.start=true", small=True, pretrained="bundled"
    )
    sides = []
    for device in (torch.device("cpu"), settings.device):
        there = replace(settings, device=device)
        progress, run_dir = runs.train_here(there, config, f"{method}-{device.type}")
        sides.append((progress, list(runlog.read_metrics(run_dir))))
    (cpu, cpu_lines), (gpu, gpu_lines) = sides
    for one, other in zip(cpu_lines, gpu_lines, strict=True):
        worst = max(
            abs(value - other["losses"][name]) / max(abs(value), 1e-6)
            for name, value in one["losses"].items()
        )
        same = one.get("labels") == other.get("labels")
        yield {
            "stage": one["stage"],
            "total loss, CPU": one["losses"]["total"],
            "GPU": other["losses"]["total"],
            "worst relative difference": worst,
            "same labels": same if "labels" in one else None,
            "clusters": one.get("clusters"),
            "agrees": worst < LOSSES and same,
        }
    for row, scores in cpu.scores.items():
        worst = max(abs(value - gpu.scores[row][name]) for name, value in scores.items())
        yield {
            "row": row,
            "Rank-1 CPU": scores["rank1"],
            "GPU": gpu.scores[row]["rank1"],
            "mAP CPU": scores["mAP"],
            "mAP GPU": gpu.scores[row]["mAP"],
            "worst difference": worst,
            "agrees": worst < SCORES,
        }
