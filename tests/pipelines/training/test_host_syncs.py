"""A step asks the device nothing: no number is read back, no shape depends on one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipelines.data import extract_features
from pipelines.training import deterministic, step
from reid_core import text
from reid_core.models import backbones
from reid_core.models.text_image import TextImageEncoder
from reid_core.types import Modality
from tests.pipelines import small_runs
from tests.pipelines.small_runs import HEIGHT, WIDTH

# On CUDA the first four wait for the device, and the last one copies a Python number from
# pageable memory, which waits too.
WAITS = (
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::_unique2",
    "aten::lift_fresh",
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("syncs")
    small_runs.write_trees(root)
    return root


@contextmanager
def watched_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Counter[str]]]:
    """Operations of the second step of every stage, by the stage's class; no optimizer's.

    The CPU's fused Adam reads its count of steps; on CUDA that count is on the device.
    """
    counts: dict[str, Counter[str]] = {}
    steps: Counter[str] = Counter()
    take = step.take

    def watch(stage: Any, model: Any, optimizer: Any, *rest: Any, **named: Any) -> None:
        name = f"{type(stage).__name__}.{getattr(stage, 'name', '')}"
        steps[name] += 1
        if steps[name] != 2:
            take(stage, model, optimizer, *rest, **named)
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer, "step", lambda: None)
            with profile(activities=[ProfilerActivity.CPU]) as watched:
                take(stage, model, optimizer, *rest, **named)
        counts[name] = Counter({event.key: event.count for event in watched.key_averages()})

    monkeypatch.setattr(step, "take", watch)
    yield counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages", "overrides"),
    [
        ("cclnet", 3, ()),
        ("bmil", 2, ()),
        ("csdn", 3, ()),
        ("cpcl", 1, ()),
        ("cpcl", 1, ("cpcl.matching.targets=soft",)),
    ],
)
def test_no_step_of_any_stage_waits(
    method: str,
    stages: int,
    overrides: tuple[str, ...],
    trees: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_runs.make_config(method, trees, *overrides)
    run = small_runs.open_run(config, tmp_path)
    with watched_steps(monkeypatch) as counts:
        deterministic.train(run.job, run.bank, run.batches, lambda *_: None, device=small_runs.CPU)
    assert len(counts) == stages
    for name, operations in counts.items():
        assert operations["aten::mm"] or operations["aten::addmm"], name
        waits = {wait: operations[wait] for wait in WAITS if operations[wait]}
        assert not waits, name


@pytest.mark.parametrize("modality", [Modality.VISIBLE, Modality.TEXT])
def test_embedding_waits_for_nothing(modality: Modality) -> None:
    clip = backbones.load("crossreid-small", "bundled")
    encoder = TextImageEncoder(clip, height=HEIGHT, width=WIDTH).eval()
    captions = [f"a person {'in red ' * (n % 4)}" for n in range(20)]
    tokens = text.tokenize(captions).ids

    class Rows:
        def num_rows(self, _: Modality) -> int:
            return len(tokens)

        def read(self, modality: Modality, rows: np.ndarray) -> np.ndarray:
            if modality == Modality.TEXT:
                return tokens[rows]
            return np.zeros((len(rows), 3, HEIGHT, WIDTH), dtype=np.uint8)

    rows = np.arange(20)
    options: Any = {"batch_size": 8, "device": small_runs.CPU}
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        features = extract_features.embed(encoder.embed, Rows(), modality, rows, **options)
    waits = {event.key: event.count for event in watched.key_averages() if event.key in WAITS}
    assert waits == {"aten::lift_fresh": 3}  # `from_numpy` of three batches, on the host
    if modality == Modality.TEXT:
        with torch.inference_mode():
            whole = encoder.embed(torch.from_numpy(tokens), modality)
        torch.testing.assert_close(features, whole)


def test_a_mask_or_a_number_read_back_would_be_seen() -> None:
    x = torch.arange(4.0)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        float(x[x > 1].sum())
        x.unique()
        torch.tensor([1.0])
    seen = {event.key for event in watched.key_averages()}
    assert seen >= set(WAITS)
