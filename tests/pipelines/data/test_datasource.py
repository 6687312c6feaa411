"""The data stream: slices of global batches, checked on arrival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.config.run import RunConfig
from pipelines.data.batches import training_batches
from pipelines.data.datasource import block_spans
from pipelines.data.plan import BatchShape, Plan
from pipelines.data.prepare import inputs_of
from pipelines.data.unreadable import find_unreadable
from pipelines.distributed.collectives import shares
from reid_core.augmentation import Augmentation
from reid_core.datasets import sysu
from reid_core.transforms import TrainTransform
from reid_core.types import Modality
from tests.pipelines.local_stream import blocks

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED
BATCHES, SIZE = 5, 8
SHAPE = BatchShape(rows={VISIBLE: SIZE, INFRARED: SIZE}, views={VISIBLE: 2, INFRARED: 1})
TRANSFORMS = {
    VISIBLE: [
        TrainTransform(Augmentation(pad=2)),
        TrainTransform(Augmentation(grayscale=1.0, erase=0.0)),
    ],
    INFRARED: [TrainTransform(Augmentation(pad=2))],
}


@pytest.fixture
def plan() -> Plan:
    rng = np.random.default_rng(0)
    shape = (BATCHES, SIZE)
    rows = {m: rng.integers(0, 30, shape) for m in (VISIBLE, INFRARED)}
    return Plan(
        rows=rows,
        labels={m: x % 7 for m, x in rows.items()},
        seeds={
            m: rng.integers(0, 2**63, (BATCHES, SIZE * views)).astype(np.uint64)
            for m, views in SHAPE.views.items()
        },
    )


def columns(plan: Plan, config: RunConfig, tree: Path, *, rank: int, world: int) -> list[dict]:
    """One rank's batches, through the read tasks and the map, as Ray Data would hand them over."""
    inputs = inputs_of(sysu.read(tree).train, tree, config)
    return list(blocks(plan, inputs, TRANSFORMS, rank=rank, world=world))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_hold_the_global_batches(
    plan: Plan, make_config: Callable[..., RunConfig], tree: Path, world: int
) -> None:
    config = make_config()
    ranks = [
        list(
            training_batches(
                columns(plan, config, tree, rank=rank, world=world),
                shape=SHAPE,
                rank=rank,
                world=world,
            )
        )
        for rank in range(world)
    ]
    whole = list(
        training_batches(columns(plan, config, tree, rank=0, world=1), shape=SHAPE, rank=0, world=1)
    )
    for number in range(BATCHES):
        for m in SHAPE.rows:
            rows = np.concatenate([batches[number][m].rows for batches in ranks])
            images = np.concatenate([batches[number][m].images for batches in ranks])
            np.testing.assert_array_equal(rows, plan.rows[m][number])
            np.testing.assert_array_equal(images, whole[number][m].images)
            assert len(images) == SHAPE.views[m] * len(rows)


def test_views_of_a_row_stand_together(
    plan: Plan, make_config: Callable[..., RunConfig], tree: Path
) -> None:
    """The second view here is the gray one: its channels are equal, the first one's are not."""
    stream = columns(plan, make_config(), tree, rank=1, world=2)
    batch = next(training_batches(stream, shape=SHAPE, rank=1, world=2))[VISIBLE]
    is_gray = (batch.images[:, 0] == batch.images[:, 1]).flatten(1).all(dim=1)
    assert is_gray.tolist() == [False, True] * (SIZE // 2)


def test_captions_travel_with_their_images(
    plan: Plan, make_config: Callable[..., RunConfig], tree: Path
) -> None:
    tokens = np.random.default_rng(2).integers(1, 99, (60, 77))
    paired = replace(plan, captions=2 * plan.rows[VISIBLE])
    stream = columns(paired, make_config(), tree, rank=1, world=2)
    for batches in training_batches(stream, shape=SHAPE, rank=1, world=2, tokens=tokens):
        batch = batches[VISIBLE]
        assert batch.captions is not None
        np.testing.assert_array_equal(batch.captions, 2 * batch.rows)
        np.testing.assert_array_equal(batch.tokens, tokens[2 * batch.rows])


@pytest.mark.parametrize("change", ["swapped batches", "wrong rank", "missing rows"])
def test_a_reordered_stream_is_refused(
    plan: Plan, make_config: Callable[..., RunConfig], tree: Path, change: str
) -> None:
    batches = columns(plan, make_config(), tree, rank=0, world=2)
    if change == "swapped batches":
        batches[0], batches[1] = batches[1], batches[0]
    elif change == "wrong rank":
        batches = columns(plan, make_config(), tree, rank=1, world=2)
    else:
        batches[0] = {name: column[1:] for name, column in batches[0].items()}
    stream = training_batches(batches, shape=SHAPE, rank=0, world=2)
    with pytest.raises(RuntimeError, match="reordered"):
        list(stream)


@pytest.mark.parametrize(("batches", "longest"), [(1, 4), (7, 4), (20, 4), (5, 1), (9, 3)])
def test_blocks_cover_the_epoch_and_the_first_is_short(batches: int, longest: int) -> None:
    spans = block_spans(batches, longest)
    assert [i for span in spans for i in range(batches)[span]] == list(range(batches))
    sizes = [span.stop - span.start for span in spans]
    assert sizes[0] == 1
    assert max(sizes) <= longest


@pytest.mark.parametrize(("rows", "parts"), [(10, 4), (3, 4), (0, 2), (8, 2)])
def test_shares_cover_all_rows_in_order(rows: int, parts: int) -> None:
    result = shares(rows, parts)
    assert [i for part in result for i in range(rows)[part]] == list(range(rows))
    sizes = [part.stop - part.start for part in result]
    assert max(sizes) - min(sizes) <= 1


def test_truncated_image_is_named(
    tmp_path: Path, make_config: Callable[..., RunConfig], tree: Path
) -> None:
    train = sysu.read(tree).train
    inputs = inputs_of(train, tree, make_config())
    victim = inputs.paths[VISIBLE][3]
    broken = tmp_path / victim
    for path in inputs.paths[VISIBLE][:5]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((tree / path).read_bytes())
    broken.write_bytes(broken.read_bytes()[:200])
    here = inputs_of(train, tmp_path, make_config())
    assert [row for row, _ in find_unreadable(here, VISIBLE, range(5))] == [3]
    assert victim in find_unreadable(here, VISIBLE, [3])[0][1]
