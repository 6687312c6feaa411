"""Images that break after the check before training: replaced, counted, named, up to a limit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config.run import RunConfig
from pipelines.data.batches import training_batches
from pipelines.data.corrupt_images import CorruptImages
from pipelines.data.inputs import Inputs
from pipelines.data.plan import BatchShape, Plan
from pipelines.data.prepare import inputs_of
from pipelines.data.replacements import NUM_REPLACEMENTS, replacements
from pipelines.errors import UserError
from pipelines.runs import runlog
from pipelines.training.epoch import EpochStart
from pipelines.training.job import Job
from pipelines.training.loop import TrainingLoop
from pipelines.training.memory_bank import MemoryBank
from reid_core.augmentation import Augmentation
from reid_core.datasets import sysu
from reid_core.methods import METHODS
from reid_core.transforms import TrainTransform
from reid_core.types import Batch, Modality
from tests.pipelines import small_runs
from tests.pipelines.local_stream import blocks

VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED
CPU = torch.device("cpu")
PLAIN = [TrainTransform(Augmentation(flip=0, pad=0, erase=0))]
TRANSFORMS = {VISIBLE: PLAIN * 2, INFRARED: PLAIN}
SHAPE = BatchShape(rows={VISIBLE: 8, INFRARED: 8}, views={VISIBLE: 2, INFRARED: 1})


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """A tree that may be damaged."""
    return Path(shutil.copytree(tree, tmp_path / "identities"))


@pytest.fixture
def inputs(copy: Path, make_config: Callable[..., RunConfig]) -> Inputs:
    return inputs_of(sysu.read(copy).train, copy, make_config(root=copy))


def a_plan(batches: int = 4) -> Plan:
    """Rows 0..19 in classes of five; row 20, which is planned once, is alone in its class."""
    rng = np.random.default_rng(3)
    rows = {m: rng.integers(0, 20, (batches, 8)) for m in (VISIBLE, INFRARED)}
    rows[VISIBLE][0, 0], rows[VISIBLE][1, 1] = 7, 20
    return Plan(
        rows=rows,
        labels={m: x // 5 for m, x in rows.items()},
        seeds={
            m: rng.integers(0, 2**63, (batches, 8 * v)).astype(np.uint64)
            for m, v in SHAPE.views.items()
        },
    )


def destroy(inputs: Inputs, modality: Modality, row: int) -> str:
    path = inputs.root / inputs.paths[modality][row]
    path.write_bytes(path.read_bytes()[:100])
    return str(path)


def epoch(inputs: Inputs, plan: Plan, *, world: int, tokens: Any = None) -> list[list[Batch]]:
    """Per rank the visible batches."""
    return [
        [
            batch[VISIBLE]
            for batch in training_batches(
                blocks(plan, inputs, TRANSFORMS, rank=rank, world=world),
                shape=SHAPE,
                rank=rank,
                world=world,
                tokens=tokens,
            )
        ]
        for rank in range(world)
    ]


def test_alternates_are_other_images_of_the_class() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 40, (30, 16))
    labels = np.where(rows < 4, -1, rows // 4)
    places = replacements(rows, labels, rng.integers(0, 2**63, rows.shape).astype(np.uint64))
    assert places.shape == (30, 16, NUM_REPLACEMENTS)
    result = rows.ravel()[places]
    np.testing.assert_array_equal(labels.ravel()[places], np.repeat(labels[..., None], 2, axis=2))
    assert (result != rows[..., None]).all()
    assert (result[..., 0] != result[..., 1]).all()


def test_alternates_are_drawn_evenly() -> None:
    rows = np.arange(5)[None].repeat(4000, axis=0)
    seeds = np.random.default_rng(0).integers(0, 2**63, rows.shape).astype(np.uint64)
    result = rows.ravel()[replacements(rows, np.zeros_like(rows), seeds)]
    for own in range(5):
        counts = Counter(result[:, own, 0].tolist())
        assert counts.keys() == set(range(5)) - {own}
        assert max(abs(n - 1000) for n in counts.values()) < 5 * 750**0.5


def test_small_classes_have_fewer_alternates() -> None:
    rows = np.array([[4, 4, 7, 8]])
    result = replacements(rows, np.array([[0, 0, 1, 1]]), np.zeros((1, 4), dtype=np.uint64))
    np.testing.assert_array_equal(result[0], [[-1, -1], [-1, -1], [3, -1], [2, -1]])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_broken_image_is_replaced_in_its_place(inputs: Inputs, world: int) -> None:
    plan = a_plan()
    destroy(inputs, VISIBLE, 7)
    whole = epoch(inputs, plan, world=1)[0]
    for number in range(plan.num_batches):
        parts = [batches[number] for batches in epoch(inputs, plan, world=world)]
        rows = torch.cat([part.rows for part in parts]).numpy()
        planned = torch.cat([part.planned for part in parts if part.planned is not None]).numpy()
        hit = plan.rows[VISIBLE][number] == 7
        np.testing.assert_array_equal(planned, np.where(hit, 7, -1))
        np.testing.assert_array_equal(rows[~hit], plan.rows[VISIBLE][number][~hit])
        assert not np.isin(7, rows)
        np.testing.assert_array_equal(rows // 5, plan.labels[VISIBLE][number])
        np.testing.assert_array_equal(rows, whole[number].rows)
        # both views show the image whose row is given
        images = torch.cat([part.images for part in parts]).numpy()
        np.testing.assert_array_equal(images, np.repeat(inputs.read(VISIBLE, rows), 2, axis=0))


def test_the_caption_is_one_of_the_replacing_image(inputs: Inputs) -> None:
    plan = a_plan()
    plan = replace(plan, captions=3 * plan.rows[VISIBLE] + 1)
    destroy(inputs, VISIBLE, 7)
    tokens = np.random.default_rng(2).integers(1, 99, (70, 77))
    for batch in epoch(inputs, plan, world=1, tokens=tokens)[0]:
        assert batch.captions is not None
        np.testing.assert_array_equal(batch.captions, 3 * batch.rows + 1)


def test_an_image_alone_in_its_class_has_none_that_was_tried(inputs: Inputs) -> None:
    name = destroy(inputs, VISIBLE, 2)
    alone = {m: np.arange(inputs.num_rows(m)) for m in (VISIBLE, INFRARED)}
    images = CorruptImages(inputs, max_share=0.5, identities=alone)
    with pytest.raises(UserError, match=f"{name} cannot be read, and no other image may stand in"):
        images.read(VISIBLE, np.array([2]))


def test_an_image_alone_in_its_cluster_ends_the_epoch_with_its_name(inputs: Inputs) -> None:
    name = destroy(inputs, VISIBLE, 20)
    batch = epoch(inputs, a_plan(), world=1)[0][1]
    assert not batch.images[2:4].any()
    with pytest.raises(UserError, match=f"{name} cannot be read, and no other image of its"):
        CorruptImages(inputs, max_share=1.0).note({VISIBLE: batch})


class TestCounting:
    def test_places_are_counted_and_files_named_once(self, inputs: Inputs) -> None:
        name = destroy(inputs, VISIBLE, 7)
        plan = a_plan()
        places = int((plan.rows[VISIBLE] == 7).sum())
        unreadable = CorruptImages(inputs, max_share=0.1)
        for expected in (1, 0):
            for batch in epoch(inputs, plan, world=1)[0]:
                unreadable.note({VISIBLE: batch})
            line = unreadable.end_epoch(CPU)
            assert line["replaced"] == places
            assert sum(name in warning for warning in line["warnings"]) == expected
        assert unreadable.end_epoch(CPU) == {"replaced": 0, "warnings": []}

    def test_more_than_allowed_is_an_error_that_names_them(self, inputs: Inputs) -> None:
        names = [destroy(inputs, VISIBLE, row) for row in (2, 7)]
        rows = np.arange(10)
        total = sum(len(paths) for paths in inputs.paths.values())
        assert len(CorruptImages(inputs, max_share=2.1 / total).read(VISIBLE, rows)) == 10
        with pytest.raises(UserError, match=r"2 training images .* data\.max_unreadable") as error:
            CorruptImages(inputs, max_share=1.9 / total).read(VISIBLE, rows)
        assert all(name in str(error.value) for name in names)

    def test_embedding_takes_an_image_of_the_same_given_class(self, inputs: Inputs) -> None:
        identities = {m: np.arange(inputs.num_rows(m)) // 5 for m in inputs.paths}
        destroy(inputs, VISIBLE, 7)
        unreadable = CorruptImages(inputs, max_share=0.1, identities=identities)
        result = unreadable.read(VISIBLE, np.arange(5, 10))
        others = inputs.read(VISIBLE, np.array([5, 6, 8, 9]))
        np.testing.assert_array_equal(result[[0, 1, 3, 4]], others)
        assert (result[2] == others).all(axis=(1, 2, 3)).sum() == 1
        np.testing.assert_array_equal(unreadable.read(VISIBLE, np.array([7]))[0], result[2])
        assert unreadable.end_epoch(CPU)["replaced"] == 0

    def test_a_data_set_that_vanished_stops(self, inputs: Inputs) -> None:
        shutil.rmtree(inputs.root)
        with pytest.raises(UserError, match="3 images that were tried in its place neither"):
            CorruptImages(inputs, max_share=1.0).read(INFRARED, np.arange(3))


@pytest.mark.slow
def test_a_run_goes_on_when_a_file_breaks_after_the_check(
    copy: Path, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_config("data.max_unreadable=0.01", "evaluation.start=false", root=copy)
    prepared = small_runs.prepare_data(config)
    name = destroy(prepared.train_inputs, VISIBLE, 4)
    bank = MemoryBank(config, prepared.pids((VISIBLE, INFRARED)))
    job = Job.of(config, prepared, tmp_path)

    def stream(start: EpochStart) -> Iterator[dict[Modality, Batch]]:
        views = METHODS["cclnet"].augmentations(config.settings, config.augmentation.options())
        transforms = {m: [TrainTransform(view) for view in each] for m, each in views.items()}
        lines = blocks(start.plan, job.train, transforms, rank=0, world=1)
        return training_batches(lines, shape=start.plan.shape, rank=0, world=1)

    TrainingLoop(job, bank, stream, lambda line, state: None, device=CPU).run()
    lines = list(runlog.read_metrics(tmp_path))
    assert [line["stage"] for line in lines] == ["prepare", "prompts", "align"]
    assert all(line["replaced"] >= 0 for line in lines)
    warnings = [warning for line in lines for warning in line["warnings"]]
    assert sum(name in warning for warning in warnings) == 1
