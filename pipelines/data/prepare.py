"""From the rows that the gate let pass to what training needs: without broken images, and where
they lie.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.config.run import RunConfig
from pipelines.data.inputs import Inputs, Measured
from pipelines.data.sample_list import Row, restore
from pipelines.errors import UserError
from pipelines.storage.shards import location
from reid_core import text
from reid_core.method import Supervision
from reid_core.methods import METHODS
from reid_core.types import OUTLIER, Dataset, Modality, Split

if TYPE_CHECKING:  # the gate looks at models, whose libraries the memory bank need not load
    from pipelines.data.gate import Passed

log = logging.getLogger(__name__)

FindBroken = Callable[[Inputs, Modality], list[tuple[int, str]]]


@dataclass(frozen=True)
class Prepared:
    """A checked data set.

    Attributes:
        kind: whose protocols apply; that of the original where the data set was converted.
        train, train_inputs: samples that are trained on, and where their rows lie.
        measured: what scores are reported of; None where the data set has no such identities.
        selection: identities that select an epoch, where the configuration asks for it.
        unreadable: messages about images that are broken: left out, or, of a run that goes on,
            replaced by others.
    """

    kind: str
    train: Split
    train_inputs: Inputs
    measured: Measured | None
    selection: Measured | None
    unreadable: tuple[str, ...]

    def pids(self, modalities: Sequence[Modality]) -> dict[Modality, np.ndarray]:
        """Per modality (n,) pids of the training rows."""
        return {m: self.train.pids[self.train.rows(m)] for m in modalities}

    def cameras(self, modalities: Sequence[Modality]) -> dict[Modality, np.ndarray] | None:
        """Per modality (n,) camera numbers of the training rows; None where one is not known."""
        cameras = {m: self.train.cameras[self.train.rows(m)] for m in modalities}
        return None if any((x == OUTLIER).any() for x in cameras.values()) else cameras

    def given(
        self, supervision: Supervision, modalities: Sequence[Modality]
    ) -> dict[Modality, np.ndarray] | None:
        """The classes that a method is told, see `reid_core.method.Supervision`; None without.

        Raises:
            UserError: a training image without the label that is needed.
        """
        if supervision == "identities":
            return self.identities(modalities)
        return self.identities_within(modalities) if supervision == "within" else None

    def identities_within(self, modalities: Sequence[Modality]) -> dict[Modality, np.ndarray]:
        """Per modality (n,) int64 classes from 0 of its own: identities, or else tracklets.

        Raises:
            UserError: an image that has neither, or one of them and others of its modality the
                other.
        """
        classes = {}
        for m in modalities:
            rows = self.train.rows(m)
            for labels in (self.train.pids[rows], self.train.tracklets[rows]):
                if (labels != OUTLIER).all():
                    classes[m] = np.unique(labels, return_inverse=True)[1].astype(np.int64)
                    break
            else:
                raise UserError(
                    f"this configuration needs a pid, or a tracklet, of every {m} image: "
                    "a manifest's columns pid and tracklet give them"
                )
        return classes

    def identities(self, modalities: Sequence[Modality]) -> dict[Modality, np.ndarray]:
        """Per modality (n,) int64 classes 0..C-1 of the training identities.

        Raises:
            UserError: a training image without a pid.
        """
        pids = self.pids(modalities)
        known = np.unique(np.concatenate(list(pids.values())))
        if known[0] == OUTLIER:
            raise UserError("this configuration needs a pid for every training image")
        return {m: np.searchsorted(known, ids).astype(np.int64) for m, ids in pids.items()}


def prepare(
    config: RunConfig,
    passed: Passed,
    find_broken: FindBroken,
    *,
    begun: Sequence[Row] | None = None,
) -> Prepared:
    """Leave out broken images, and say what else is not as it might have been meant.

    Args:
        config: the run's configuration.
        passed: what the gate let pass.
        find_broken: rows of some files that cannot be decoded, with the reason.
        begun: training rows of the run that goes on; none of them is left out.

    Raises:
        UserError: too many are broken, or rows of the run that goes on are gone.
    """
    dataset, where = passed.dataset, location(passed.dataset.root)
    for note in dataset.notes:
        log.warning("%s: %s", where, note)
    for said in (*passed.wrong_counts, *resized_otherwise(dataset, config)):
        log.warning("%s", said)
    if reason := passed.why_unmeasured:
        without = "%s: training without evaluation, since of the %s split %s"
        log.warning(without, where, config.evaluation.split, reason)
    splits = {"train": passed.train if begun is None else restore(passed.train, begun)}
    judged = {"measured": passed.measured, "selection": passed.selection}
    splits |= {name: split for name, split in judged.items() if len(split)}
    cleaned: dict[str, Split] = {}
    unreadable: list[str] = []
    for name, split in splits.items():
        rest, messages = without_broken(split, dataset.root, config, find_broken)
        goes_on = name == "train" and begun is not None
        cleaned[name] = split if goes_on else rest
        for message in messages:
            log.warning("%s: %s", "another stands in" if goes_on else "left out", message)
        unreadable += messages
    refuse_too_many(unreadable, sum(map(len, splits.values())), config)
    inputs = {name: inputs_of(split, dataset.root, config) for name, split in cleaned.items()}
    return Prepared(
        kind=dataset.kind,
        train=cleaned["train"],
        train_inputs=inputs["train"],
        **{
            name: Measured(cleaned[name], inputs[name]) if name in cleaned else None
            for name in judged
        },
        unreadable=tuple(unreadable),
    )


def refuse_too_many(unreadable: list[str], num_rows: int, config: RunConfig) -> None:
    """The limit of `data.max_unreadable`.

    Raises:
        UserError: more than that cannot be read; names the first.
    """
    limit = config.data.max_unreadable * num_rows
    if len(unreadable) > limit:
        shown = "\n  ".join(unreadable[:10])
        raise UserError(
            f"{len(unreadable)} images cannot be read, more than data.max_unreadable="
            f"{config.data.max_unreadable:g} allows ({limit:.0f}):\n  {shown}\n"
            "replace them, or raise the limit to go on without them"
        )


def resized_otherwise(dataset: Dataset, config: RunConfig) -> list[str]:
    """A sentence where all images were resized once, to another size than the model's."""
    before, now = dataset.size, (config.model.height, config.model.width)
    if before is None or before == now:
        return []
    return [
        f"{location(dataset.root)}: its images were packed at {before[0]}x{before[1]} and are "
        "resized again: scores are others than with the original; pack it with --size "
        f"{now[0]}x{now[1]}"
    ]


def inputs_of(split: Split, root: Path, config: RunConfig) -> Inputs:
    """The images and captions of a split, per modality in row order.

    Captions know their images where all are of images of the split; training needs that.
    """
    images = np.array([sample.image for sample in split.samples])
    modalities = METHODS[config.method].inputs
    seen: dict[Modality, np.ndarray]
    seen = {m: images[split.rows(m)] for m in modalities if m != Modality.TEXT}
    result = Inputs(
        root,
        seen,
        height=config.model.height,
        width=config.model.width,
        max_megapixels=config.data.max_megapixels,
    )
    if Modality.TEXT not in modalities:
        return result
    row_of = {image: row for row, image in enumerate(seen[Modality.VISIBLE])}
    sentences = [split.samples[i] for i in split.rows(Modality.TEXT)]
    tokens = text.tokenize([sample.caption for sample in sentences])
    if tokens.truncated.any():
        log.warning("%d captions were cut to 77 tokens", tokens.truncated.sum())
    owners = np.array([row_of.get(sample.image, OUTLIER) for sample in sentences], dtype=np.int64)
    owned = None if (owners == OUTLIER).any() else owners
    return replace(result, tokens=tokens.ids, owners=owned)


def without_broken(
    split: Split, root: Path, config: RunConfig, find_broken: FindBroken
) -> tuple[Split, list[str]]:
    """A split without the images that cannot be decoded, and a message of each.

    Args:
        split: rows of all modalities of the method.
        root: folder that their images are relative to.
        config: of the run.
        find_broken: looks for them.

    Raises:
        UserError: a modality has no row.
    """
    inputs = inputs_of(split, root, config)
    messages: list[str] = []
    broken: set[str] = set()
    for m in METHODS[config.method].inputs:
        rows = split.rows(m)
        if not len(rows):
            raise UserError(
                f"{location(root)} has no {m} rows for this split: {config.method} trains on and "
                f"is measured with {' and '.join(METHODS[config.method].inputs)}"
            )
        if m != Modality.TEXT:
            result = find_broken(inputs, m)
            broken |= {str(inputs.paths[m][row]) for row, _ in result}
            messages += [message for _, message in result]
    if not broken:
        return split, messages
    # captions go with their image
    remaining = [i for i, sample in enumerate(split.samples) if sample.image not in broken]
    return split.take(remaining), messages
