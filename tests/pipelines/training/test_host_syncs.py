"""A step asks the device nothing: no number is read back, no shape depends on one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipelines.data import extract_features
from pipelines.distributed import collectives
from pipelines.distributed.sharded_rows import ShardedRows
from pipelines.training import deterministic, step
from reid_core import text
from reid_core.models import backbones
from reid_core.models.text_image import TextImageEncoder
from reid_core.types import Modality
from tests.pipelines import small_runs
from tests.pipelines.small_runs import HEIGHT, WIDTH
from tests.waits import WAITS, operations_of, waits_of


@dataclass(frozen=True)
class Watched:
    """One step.

    Attributes:
        operations: of the profiler; none of the optimizer, but what follows its step.
        exchanges: with other workers, BatchNorm's and the mean of the gradients excepted; where a
            gradient flows back there are two.
        terms: names of the losses.
    """

    operations: Counter[str]
    exchanges: Counter[str]
    terms: frozenset[str]


@contextmanager
def watched_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Watched]]:
    """The second step of every stage and kind of batch, by the stage's class.

    The CPU's fused Adam reads its count of steps; on CUDA that count is on the device.
    """
    result: dict[str, Watched] = {}
    steps: Counter[str] = Counter()
    exchanges = counted_exchanges(monkeypatch)
    take = step.take

    def watch(stage: Any, model: Any, optimizer: Any, batch: Any, *rest: Any, **named: Any) -> None:
        kinds = {part.kind for part in batch.values()} if isinstance(batch, dict) else {""}
        name = " ".join([type(stage).__name__, getattr(stage, "name", ""), *kinds]).strip()
        steps[name] += 1
        if steps[name] != 2:
            take(stage, model, optimizer, batch, *rest, **named)
            return

        assert all(group["fused"] for group in optimizer.param_groups), name
        given, names = stage.terms, set[str]()

        def terms(*arguments: Any) -> Any:
            result = given(*arguments)
            names.update(result)
            return result

        def follow() -> None:
            for hook in optimizer._optimizer_step_post_hooks.values():
                hook(optimizer, (), {})

        exchanges.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer, "step", follow)
            patch.setattr(stage, "terms", terms)
            with profile(activities=[ProfilerActivity.CPU]) as watched:
                take(stage, model, optimizer, batch, *rest, **named)
        result[name] = Watched(operations_of(watched), Counter(exchanges), frozenset(names))

    monkeypatch.setattr(step, "take", watch)
    yield result


def counted_exchanges(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what one worker alone would exchange if there were several."""
    exchanges: Counter[str] = Counter()

    def count(owner: Any, name: str, times: int) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            exchanges[name] += times
            return original(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(collectives, "gather_rows", 1)
    count(collectives, "gather_rows_with_gradient", 2)
    count(collectives, "sum_over_workers", 1)
    count(ShardedRows, "__getitem__", 1)  # frozen features are summed from their owners
    return exchanges


BMIL = {"Images intra separate": 3, "Images joint separate": 3, "Images joint joint": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages", "overrides"),
    [
        ("cclnet", {"Images prepare": 2, "Prompting": 5, "Images align": 2}, ()),
        ("cclnet-ours", {"Images align": 2}, ()),
        ("bmil", BMIL, ()),
        ("bmil", BMIL, ("bmil.refine.labels=voted", "bmil.refine.neighbors=8")),
        ("bmil", BMIL | {"Images joint joint": 3}, ("bmil.memory.gradient=as_published",)),
        ("csdn", {"Prompting": 5, "Fusing": 5, "Imaging": 3}, ()),
        ("cpcl", {"Train": 3}, ()),
        ("cpcl", {"Train": 3}, ("cpcl.matching.targets=soft",)),
    ],
)
def test_no_step_of_any_stage_waits_and_each_meets_the_others_a_few_times(
    method: str,
    stages: dict[str, int],
    overrides: tuple[str, ...],
    trees: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`-s` shows the numbers, which are those of docs/benchmarks.md."""
    steps = run_and_watch(method, overrides, trees, tmp_path, monkeypatch)
    assert {name: watched.exchanges.total() for name, watched in steps.items()} == stages


# Visible images are drawn across in even epochs, infrared ones in odd ones.
ACROSS = (
    "cclnet.refine={labels: voted, neighbors: 8, cross: 3, cross_updates: true}",
    "cclnet.matching={method: proposed, exclusion: 0.25}",
    "cclnet.swap.when=never",
)
IN_ODD_EPOCHS = (*ACROSS, "cclnet.align.batches_per_epoch=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "exchanges", "terms", "overrides"),
    [
        ("cclnet", 2, {"visible_across", "visible_exclusion"}, ACROSS),
        ("cclnet", 2, {"infrared_across", "visible_exclusion"}, IN_ODD_EPOCHS),
        ("cclnet", 4, {"visible", "infrared"}, ("trainer.gradient_accumulation=2",)),
        ("cclnet-vit", 2, {"visible", "infrared"}, ("cclnet.labels=within",)),
        ("csdn", 3, {"shared", "triplet"}, ("csdn.profile=reference", "csdn.variant=head")),
    ],
)
def test_neither_does_a_step_with_options(
    method: str,
    exchanges: int,
    terms: set[str],
    overrides: tuple[str, ...],
    trees: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the last stage, and of those before it without a word on their exchanges.

    Parts of a batch meet the other workers once each.
    """
    if method != "csdn":
        overrides += ("cclnet.image_to_text=0",)  # the last stage alone
    steps = run_and_watch(method, overrides, trees, tmp_path, monkeypatch)
    last = steps["Imaging" if method == "csdn" else "Images align"]
    assert terms <= last.terms
    assert last.exchanges.total() == exchanges


def run_and_watch(
    method: str,
    overrides: tuple[str, ...],
    trees: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Watched]:
    """A small run's steps, of which none waits."""
    run = small_runs.open_run(small_runs.make_config(method, trees, *overrides), folder)
    with watched_steps(monkeypatch) as steps:
        deterministic.train(run.job, run.bank, run.batches, lambda *_: None, device=small_runs.CPU)
    for name, watched in steps.items():
        num = sum(n for key, n in watched.operations.items() if key.startswith("aten::"))
        waits = waits_of(watched.operations)
        sys.stdout.write(
            f"{' '.join([method, *overrides])}, {name}: {num:,} operations, "
            f"{sum(waits.values())} waits, {watched.exchanges.total()} exchanges "
            f"{dict(watched.exchanges)}\n"
        )
        assert watched.operations["aten::mm"] or watched.operations["aten::addmm"], name
        assert not waits, name
    return steps


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
    waits = waits_of(operations_of(watched))
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
    assert waits_of(operations_of(watched)).keys() == set(WAITS)
