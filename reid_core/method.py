"""What a method is to the machinery: three plain types that every method speaks.

A method is a module in `reid_core.methods` with these names:

    Config                                  its settings, a pydantic model; the paper's values are
                                            the defaults
    INPUTS                                  modalities that it embeds, clusters and trains on
    supervision(config)                     -> "none", "identities" or "pairs"
    needs_text(config)                      -> whether the model must have a text tower
    stages(config)                          -> names of the stages to run, in order
    batch_rows(config)                      -> {config key: rows of a global batch}, per stage
    augmentations(config, base)             -> {modality: one `Augmentation` per view}
    open_stage(config, name, clip, *, height, width, identities, handed, seed) -> `Stage`
    load_encoder(config, clip, *, height, width, state) -> `Encoder` in eval mode; state is the
                                            module state of a streamed stage, None for CLIP's
    check(config)                           -> warnings about settings without effect

and, where the batches of an epoch follow from clusters (`Stage.clusters`) or given identities:

    cluster(config, features, *, owners, search) -> labels of one modality; owners (n captions,)
                                            int64 image row of each caption, None but for images
                                            with captions; search: `neighbours.Search`
    begin_epoch(config, stage, *, features, labels, owners, epoch, seed, search, cameras)
                                            -> `Epoch`; cameras per modality (n,), or None

`identities` are per modality (n,) int64 classes from 0, or None where the method is not given any.
All of them are pure functions of their arguments. A stage is one worker's; it knows neither how
many workers there are nor how a global batch was cut: it is given `gather`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.types import Modality, Term

Gather = Callable[[Tensor], Tensor]
"""(B, ...) of this worker -> (global B, ...) in (rank, position) order, the order of the plan.

In a loss its gradient flows back to every owner, so a term that is computed on gathered rows by
every worker counts as the same global mean everywhere.
"""


def gather_together(gather: Gather, *tensors: Tensor) -> list[Tensor]:
    """`gather` of several tensors (B, ...) in one exchange; the first one is of floats.

    Integers travel as the bits of such floats, so they come back as they were.
    """
    dtype = tensors[0].dtype
    flat = [x.reshape(len(x), -1) for x in tensors]
    packed = [x if x.is_floating_point() else x.view(dtype) for x in flat]
    whole = gather(torch.cat(packed, dim=1))
    parts = whole.split([x.shape[1] for x in packed], dim=1)
    return [
        (part if x.is_floating_point() else part.detach().contiguous().view(x.dtype)).reshape(
            len(whole), *x.shape[1:]
        )
        for part, x in zip(parts, tensors, strict=True)
    ]


@dataclass(frozen=True)
class Epoch:
    """What one epoch trains on, the same for all workers.

    Rows of images count within their modality, rows of captions within the captions.

    Attributes:
        plan: per image modality (batches, B) int64 rows, the global batches.
        labels: per modality (n,) int64 classes, -1 = outlier.
        place_labels: per modality (batches, B) the class of each planned row, where that is not
            `labels`': a row may stand in batches of several kinds.
        captions: (batches, B) int64, the caption of each planned visible row; None without text.
        banks: per modality (C, D) float32 unit prototypes; empty where a method has none.
        pairs: (M, 2) int64 matched clusters; empty where nothing is coupled.
        similarity: (M,) cosine of the matched prototypes.
        arrays: what else a method's stage needs to know, under names of its own.
        counts: further numbers for the log.
        repeats: per modality, places of a global batch that one class has at most.
        warnings: what the user should know about this epoch.
    """

    plan: dict[Modality, np.ndarray]
    labels: dict[Modality, np.ndarray]
    place_labels: dict[Modality, np.ndarray] = field(default_factory=dict)
    captions: np.ndarray | None = None
    banks: dict[Modality, np.ndarray] = field(default_factory=dict)
    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    similarity: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    repeats: dict[Modality, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Encoder(Protocol):
    """A module that turns images, or captions, into descriptors: what retrieval needs."""

    @property
    def feature_dim(self) -> int:
        """D, the width of a descriptor."""

    def embed(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Unit rows (B, D).

        Args:
            inputs: (B, 3, H, W) uint8 images, or (B, 77) int64 token ids where modality is TEXT.
            modality: of the inputs.
        """


class Stage(Protocol):
    """One stage of a method on one worker.

    Attributes:
        module: what is trained and kept in checkpoints. Its BatchNorm layers may be replaced, so
            `optimizer` is asked for afterwards.
        epochs: length of the stage.
        evaluate_every: epochs between evaluations; 0 only after the last one, None never.
        clusters: whether epochs start by embedding and clustering every training image.
        encoder: what embeds, for clustering, for caching and for evaluation; part of `module` or
            frozen.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def epochs(self) -> int: ...

    @property
    def evaluate_every(self) -> int | None: ...

    @property
    def clusters(self) -> bool: ...

    @property
    def encoder(self) -> Encoder: ...

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer of the module's trained parameters."""

    def learning_rate(self, epoch: int) -> float:
        """Base learning rate of an epoch, set before it starts."""

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Take what was decided between epochs; streamed stages only."""

    def prepare(self, batch: Any) -> Any:
        """What of a batch is computed on the host, before it goes to the device."""

    def terms(self, model: nn.Module, batch: Any, gather: Gather) -> Terms:
        """Losses of one step on this worker's slice of the global batch; asks no device.

        Args:
            model: `module`, possibly wrapped for several workers; call it, not `module`.
            batch: `Batch` per image modality; of a cached stage what `batches` yielded.
            gather: see `Gather`.
        """

    def update(self, gather: Gather) -> None:
        """What follows the optimizer's step: memory updates with the last batch's features."""

    def hand_on(self) -> dict[str, Tensor]:
        """What later stages need, called after the last epoch; on the CPU."""

    def state_dict(self) -> dict[str, Tensor]:
        """Banks, labels and pairs of the epoch, for the checkpoint; not the module."""


Terms = dict[str, Term]


@runtime_checkable
class CachedStage(Stage, Protocol):
    """A stage that trains on features of a frozen encoder, embedded once.

    Attributes:
        batch_rows: rows of a global batch that the workers share.
    """

    @property
    def batch_rows(self) -> int: ...

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """The frozen features (B, E) to cache; inputs as in `Encoder.embed`."""

    def take(self, features: Mapping[Modality, Tensor]) -> None:
        """All cached features (n, E), in row order, before the first epoch."""

    def batches(self, epoch: int, share: Callable[[int], slice]) -> Iterator[Any]:
        """The epoch's batches.

        Args:
            epoch: from 0.
            share: number of rows -> this worker's contiguous slice of them.
        """
