"""What a worker does within an epoch, as the machinery sees it: a stage, and what it is given.

A stage is one worker's. It knows neither how many workers there are nor how a global batch was
cut: it is given `gather`. What happens between the epochs is `reid_core.method`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.types import Batch, Modality, Term

Gather = Callable[[Tensor], Tensor]
"""(B, ...) of this worker -> (global B, ...) in (rank, position) order, the order of the plan.

In a loss its gradient flows back to every owner, so a term that is computed on gathered rows by
every worker counts as the same global mean everywhere.
"""


def gather_together(gather: Gather, *tensors: Tensor) -> list[Tensor]:
    """`gather` of several tensors (B, ...) in one exchange; the first one is of floats.

    Each has a B of its own. Integers travel as the bits of such floats, so they come back as they
    were.
    """
    dtype = tensors[0].dtype
    flat = [x.reshape(-1) for x in tensors]
    packed = [x if x.is_floating_point() else x.view(dtype) for x in flat]
    whole = gather(torch.cat(packed)[None])  # a row of each worker
    parts = whole.split([len(x) for x in packed], dim=1)
    # a copy of the integers, since an odd number of floats may lie before them
    unpacked = [
        part
        if x.is_floating_point()
        else part.detach().clone(memory_format=torch.contiguous_format).view(x.dtype)
        for part, x in zip(parts, tensors, strict=True)
    ]
    return [
        part.reshape(len(whole) * len(x), *x.shape[1:])
        for part, x in zip(unpacked, tensors, strict=True)
    ]


@dataclass(frozen=True)
class Epoch:
    """What the workers are told of an epoch's plan; their batches come to them as `Batch`.

    Attributes:
        labels: per modality (n,) int64 classes, -1 = outlier.
        prototypes: per modality (C, D) float32 unit rows; empty where a method has none.
        pairs: (M, 2) int64 matched clusters; empty where nothing is coupled.
        arrays: what else the method's stage needs to know, under names of its own.
        repeats: per modality, places of a global batch that one class has at most.
    """

    labels: Mapping[Modality, np.ndarray]
    prototypes: Mapping[Modality, np.ndarray] = field(default_factory=dict)
    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    repeats: Mapping[Modality, int] = field(default_factory=dict)


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

    def to(self, device: torch.device) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class Stage(Protocol):
    """One stage of a method on one worker: a `StreamedStage` or a `CachedStage`.

    Attributes:
        module: what is trained and kept in checkpoints. Its BatchNorm layers may be replaced, so
            `optimizer` is asked for afterwards.
        epochs: length of the stage.
        evaluate_every: epochs between evaluations; 0 only after the last one, None never.
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
    def encoder(self) -> Encoder: ...

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer of the module's trained parameters."""

    def learning_rate(self, epoch: int) -> float:
        """Base learning rate of an epoch, set before it starts."""

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
        """What later stages need, called after the last epoch; on the CPU, weights excepted.

        Those are the tensors of `module` themselves, which a checkpoint then holds once.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Banks, labels and pairs of the epoch, for the checkpoint; not the module."""


Terms = dict[str, Term]


class StreamedStage(Stage, Protocol):
    """A stage that trains on images, by a plan that is made between epochs."""

    def begin_epoch(self, number: int, epoch: Epoch) -> None:
        """Take what was decided between epochs.

        Args:
            number: of the epoch within the stage, from 0.
            epoch: see `Epoch`.
        """

    def on_host(self, batch: dict[Modality, Batch]) -> dict[Modality, Batch]:
        """The batch that goes to the device, with what of it is computed on the host."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what steps have changed, after `begin_epoch`."""


class CachedRows(Protocol):
    """Frozen features (n, E) that workers may share out: a tensor is one."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The given rows (B, E); all workers ask for the same ones, in the same order of calls."""


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

    def take(self, features: Mapping[Modality, CachedRows]) -> None:
        """All cached features (n, E), in row order, before the first epoch."""

    def batches(self, epoch: int, share: Callable[[int], slice]) -> Iterator[Any]:
        """The epoch's batches.

        Args:
            epoch: from 0.
            share: number of rows -> this worker's contiguous slice of them.
        """
