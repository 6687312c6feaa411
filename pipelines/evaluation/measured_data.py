"""The data that a checkpoint is measured on: chosen, and never what its run was trained on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.cluster import machine
from pipelines.config import run as configuration
from pipelines.config.run import RunConfig
from pipelines.data.listed import read
from pipelines.data.measurable import why_unmeasured
from pipelines.data.prepare import refuse_too_many, resized_otherwise, without_broken
from pipelines.data.sample_list import rows_of, rows_of_checkpoint
from pipelines.data.unreadable import find_in_threads
from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder
from pipelines.storage.shards import location
from reid_core.datasets import LAYOUTS
from reid_core.types import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredData:
    """A split of a data set.

    Attributes:
        kind, root: of the data set.
        samples: of the split.
        config: the run's, with this data set.
    """

    kind: str
    root: Path
    samples: Split
    config: RunConfig


def chosen(
    loaded: LoadedEncoder,
    path: Path,
    split: str,
    *,
    kind: str | None,
    root: Path | None,
    trial: int | None,
) -> MeasuredData:
    """The run's data set, or another one.

    Args:
        loaded: the encoder.
        path: of its checkpoint or run.
        split: "test" or "val".
        kind, root, trial: None for those of the run.

    Raises:
        UserError: no such data set or split, nothing that can be measured, or images that the run
            was trained on.
    """
    if split not in ("test", "val"):
        raise UserError(f"--split {split}: choose test or val")
    tree = loaded.config.model_dump(mode="json")
    given = {"kind": kind, "root": root, "trial": trial}
    tree["data"] |= {key: value for key, value in given.items() if value is not None}
    config = configuration.validate(tree, source=str(path))
    if trial is not None and not LAYOUTS[config.data.kind].has_trials:
        raise UserError(f"--trial {trial}: {config.data.kind} has no divisions, RegDB has")
    dataset = read(config)
    samples: Split = getattr(dataset, split)
    if reason := why_unmeasured(dataset.kind, samples, loaded.modalities):
        raise UserError(f"{location(dataset.root)}: of the {split} split {reason}")
    _refuse_trained(path, samples, loaded.config, config)
    for said in resized_otherwise(dataset, config):
        log.warning("%s", said)
    return MeasuredData(dataset.kind, dataset.root, samples, config)


def readable(data: MeasuredData) -> Split:
    """The samples without images that cannot be read, which are named; captions go with them.

    Raises:
        UserError: more than `data.max_unreadable` allows.
    """
    find = partial(find_in_threads, num_threads=machine.cores())
    rest, messages = without_broken(data.samples, data.root, data.config, find)
    refuse_too_many(messages, len(data.samples), data.config)
    for message in messages:
        log.warning("left out: %s", message)
    return rest


def _refuse_trained(path: Path, split: Split, trained: RunConfig, config: RunConfig) -> None:
    """Scores of images that were trained on say nothing about identities never seen.

    Another data set may have images of the same names: there it is said.
    """
    shared = sorted(set(rows_of_checkpoint(path)) & set(rows_of(split)))
    if not shared or config.data.allow_shared_identities:
        return
    said = f"{len(shared):,} of {len(split):,} measured rows, as {shared[0][1]}"
    if (trained.data.root, trained.data.kind) != (config.data.root, config.data.kind):
        log.warning(
            "%s, are called as rows that this run was trained on: where they are the same images, "
            "these scores say nothing about identities never seen",
            said,
        )
        return
    raise UserError(
        f"{said}, are rows that this run was trained on: scores of them say nothing about "
        "identities never seen. Measure another split or, of RegDB, the run's own trial; "
        "data.fit=train leaves the validation split to be measured"
    )
