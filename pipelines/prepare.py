"""From a data set on disk to what training needs: splits, image files, checks, weights.

Everything that can be known before training is checked here, with the remedy in the message.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.config import RunConfig
from pipelines.data import ImageFiles
from pipelines.errors import UserError
from reid_core.datasets import READERS
from reid_core.methods import cclnet
from reid_core.models import clip
from reid_core.types import Dataset, Modality, Split

log = logging.getLogger(__name__)

FindBroken = Callable[[ImageFiles, Modality], list[tuple[int, str]]]


@dataclass(frozen=True)
class Prepared:
    """A checked data set.

    Attributes:
        train, test: rows that are trained on and rows that are measured.
        train_files, test_files: where their images lie.
        unreadable: messages about images that were left out.
    """

    train: Split
    test: Split
    train_files: ImageFiles
    test_files: ImageFiles
    unreadable: tuple[str, ...]

    @property
    def pids(self) -> dict[Modality, np.ndarray]:
        """Per modality (n,) person ids of the training rows."""
        return {m: self.train.pids[self.train.rows(m)] for m in cclnet.MODALITIES}


def prepare(config: RunConfig, find_broken: FindBroken) -> Prepared:
    """Read the data set, leave out broken images, check that training can start.

    Args:
        config: the run's configuration.
        find_broken: rows of some files that cannot be decoded, with the reason.

    Raises:
        UserError: names what is wrong and what to do.
    """
    check_settings(config)
    dataset = read(config)
    train = _fit_rows(dataset, config)
    test = dataset.val if config.evaluation.split == "val" else dataset.test
    unreadable: list[str] = []
    cleaned = []
    for split in (train, test):
        kept, messages = _without_broken(split, dataset.root, config, find_broken)
        cleaned.append(kept)
        unreadable += messages
    limit = config.data.max_unreadable * (len(train) + len(test))
    if len(unreadable) > limit:
        shown = "\n  ".join(unreadable[:10])
        raise UserError(
            f"{len(unreadable)} images cannot be read, more than data.max_unreadable="
            f"{config.data.max_unreadable:g} allows ({limit:.0f}):\n  {shown}\n"
            "replace them, or raise the limit to train without them"
        )
    for message in unreadable:
        log.warning("left out: %s", message)
    train, test = cleaned
    return Prepared(
        train=train,
        test=test,
        train_files=image_files(train, dataset.root, config),
        test_files=image_files(test, dataset.root, config),
        unreadable=tuple(unreadable),
    )


def read(config: RunConfig) -> Dataset:
    """The data set that the configuration names.

    Raises:
        UserError: no such folder, or not the layout of this kind.
    """
    root = config.data.root
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder")
    try:
        return READERS[config.data.kind](root.resolve())
    except ValueError as error:
        raise UserError(f"{root} is no readable {config.data.kind} data set: {error}") from error


def image_files(split: Split, root: Path, config: RunConfig) -> ImageFiles:
    """The image files of a split, per modality in row order."""
    images = np.array([record.image for record in split.records])
    return ImageFiles(
        root=root,
        paths={m: images[split.rows(m)] for m in cclnet.MODALITIES},
        height=config.model.height,
        width=config.model.width,
    )


def check_settings(config: RunConfig) -> None:
    """Refuse settings that contradict each other; warn of those without effect."""
    method, workers = config.cclnet, config.trainer.num_workers
    for stage in cclnet.stages(method):
        settings = getattr(method, stage)
        size, name = (
            (settings.batch_size, f"cclnet.{stage}.batch_size")
            if stage == "prompts"
            else (
                settings.clusters_per_batch * settings.instances,
                f"cclnet.{stage}.clusters_per_batch x instances",
            )
        )
        if size % workers:
            raise UserError(
                f"{name} = {size} cannot be shared by trainer.num_workers={workers}: "
                "choose a multiple"
            )
    if config.evaluation.split == "val" and config.data.fit != "train":
        raise UserError(
            "evaluation.split=val measures people that data.fit=train+val trains on: "
            "set data.fit=train"
        )
    coupled = method.swap.when != "never" or method.matching.shared
    if coupled and method.swap.start_epoch >= method.align.epochs:
        log.warning(
            "cclnet.swap.start_epoch=%d is not reached in cclnet.align.epochs=%d: the modalities "
            "are never coupled",
            method.swap.start_epoch,
            method.align.epochs,
        )


def check_weights(config: RunConfig) -> int:
    """Load the CLIP model once; returns its size in bytes.

    Raises:
        UserError: unknown model, missing or unfitting weights.
    """
    try:
        model = clip.load(config.model.name, config.model.pretrained)
        cclnet.build(model, height=config.model.height, width=config.model.width)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return sum(p.numel() * p.element_size() for p in model.model.parameters())


def check_disk(config: RunConfig, run_dir: Path, model_bytes: int) -> None:
    """Refuse to start where the checkpoints will not fit.

    A checkpoint holds weights and two moments; one more than is kept exists while it is written.
    """
    needed = 3 * model_bytes * (config.trainer.keep_checkpoints + 1) + 64 * 2**20
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise UserError(
            f"{run_dir} has {free / 2**30:.1f} GiB free, the checkpoints of this run need about "
            f"{needed / 2**30:.1f} GiB: free space, choose another --out, or lower "
            "trainer.keep_checkpoints"
        )


def _fit_rows(dataset: Dataset, config: RunConfig) -> Split:
    records = dataset.train.records
    if config.data.fit == "train+val":
        records += dataset.val.records
    return Split(records)


def _without_broken(
    split: Split, root: Path, config: RunConfig, find_broken: FindBroken
) -> tuple[Split, list[str]]:
    files = image_files(split, root, config)
    messages, broken = [], []
    for m in cclnet.MODALITIES:
        rows = split.rows(m)
        if not len(rows):
            raise UserError(
                f"{root} has no {m} images for this split: "
                "visible-infrared training and evaluation need both modalities"
            )
        found = find_broken(files, m)
        broken += [int(rows[index]) for index, _ in found]
        messages += [message for _, message in found]
    if not broken:
        return split, messages
    kept: Sequence[int] = np.setdiff1d(np.arange(len(split)), broken)  # type: ignore[assignment]
    return split.take(kept), messages
