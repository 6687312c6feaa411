"""What is trained on, where results go, and whom the workers ask between epochs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines.config.run import RunConfig
from pipelines.data.decoded import Decoded
from pipelines.data.inputs import Inputs, Measured
from pipelines.data.prepare import Prepared
from pipelines.training.epoch import EpochStart, Key
from reid_core.knn.products import Features
from reid_core.method import Method
from reid_core.methods import METHODS
from reid_core.transforms import TrainTransform
from reid_core.types import Modality


class EpochSource(Protocol):
    """What the loop asks between epochs: a `MemoryBank`, a `Planner`, or a proxy of either."""

    def open(self) -> int: ...

    def add_features(
        self, token: int, key: Key, modality: Modality, features: Features, rank: int, world: int
    ) -> None: ...

    def begin_epoch(self, token: int, key: Key, world: int) -> EpochStart: ...


@dataclass(frozen=True)
class Job:
    """What is trained on, and where results go; the same for every worker.

    Attributes:
        config: the run's configuration.
        run_dir: run directory, on a file system that all workers see.
        kind: of the data set, whose protocols measure.
        train: training rows.
        measured: what scores are reported of; None where nothing can be measured.
        selection: identities that choose the epoch whose scores are reported apart; None without.
        identities: per modality (n,) given classes; None where the method is not told any.
    """

    config: RunConfig
    run_dir: Path
    kind: str
    train: Inputs
    measured: Measured | None
    selection: Measured | None = None
    identities: dict[Modality, np.ndarray] | None = None

    @classmethod
    def of(cls, config: RunConfig, prepared: Prepared, run_dir: Path) -> Job:
        """The work of a run on a checked data set; its classes where the method is told them.

        Raises:
            UserError: the method needs a pid, or a tracklet, that a training image lacks.
        """
        method = METHODS[config.method]
        prepared = _keeping_decoded(config, prepared)
        return cls(
            config,
            run_dir,
            prepared.kind,
            prepared.train_inputs,
            prepared.measured,
            prepared.selection,
            prepared.given(method.supervision(config.settings), method.inputs),
        )

    @property
    def method(self) -> Method[Any]:
        """The method that trains."""
        return METHODS[self.config.method]

    @property
    def transforms(self) -> dict[Modality, list[TrainTransform]]:
        """Per modality what makes each view of a training image."""
        config = self.config
        views = self.method.augmentations(config.settings, config.augmentation.options())
        return {m: [TrainTransform(view) for view in of_each] for m, of_each in views.items()}


def _keeping_decoded(config: RunConfig, prepared: Prepared) -> Prepared:
    """The same data, whose images are decoded once, as far as there is room for them."""
    splits = [prepared.measured, prepared.selection]
    inputs = [prepared.train_inputs, *(split.inputs for split in splits if split is not None)]
    decoded = Decoded.holding(
        sum(each.num_rows(m) for each in inputs for m in each.paths),
        token=uuid.uuid4().hex,
        num_bytes=config.data.cache_bytes,
        height=config.model.height,
        width=config.model.width,
    )
    measured, selection = (
        split and replace(split, inputs=replace(split.inputs, decoded=decoded)) for split in splits
    )
    return replace(
        prepared,
        train_inputs=replace(prepared.train_inputs, decoded=decoded),
        measured=measured,
        selection=selection,
    )
