"""A mean teacher: the slow average of an encoder, which embeds in its place.

Reference: Tarvainen and Valpola, "Mean teachers are better role models", NIPS 2017; for clustering
features as in MMT (Ge, Chen, Li, ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from reid_core.models.encoders import ImageEncoder
from reid_core.types import Modality

_PREFIX = "teacher."


class MeanTeacher(nn.Module):
    """Two encoders: the student is trained, the teacher follows and embeds.

    Args:
        student: trained in place; the teacher starts as its copy.
        momentum: share of the teacher that an update keeps, below 1.
    """

    def __init__(self, student: ImageEncoder, *, momentum: float) -> None:
        super().__init__()
        self.student, self.momentum = student, momentum
        self.teacher = deepcopy(student).requires_grad_(False).eval()

    @property
    def feature_dim(self) -> int:
        """D, the width of a descriptor."""
        return self.teacher.feature_dim

    def train(self, mode: bool = True) -> MeanTeacher:
        """The student's mode; the teacher never trains."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, visible: Tensor | None, infrared: Tensor | None) -> Any:
        """The student's features."""
        return self.student(visible, infrared)

    def embed(self, inputs: Tensor, modality: Modality) -> Tensor:
        """The teacher's descriptors (B, D)."""
        return self.teacher.embed(inputs, modality)

    def project(self, inputs: Tensor, modality: Modality) -> Tensor:
        """The teacher's projected features (B, E), not normalized."""
        return self.teacher.project(inputs, modality)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves the teacher after every step of the student's optimizer."""
        optimizer.register_step_post_hook(lambda *_: self._approach())

    @torch.no_grad()
    def _approach(self) -> None:
        """Weights and running statistics come nearer to the student's, by the momentum."""
        means, news = _by_kind(self.teacher), _by_kind(self.student)
        # all tensors in one call, or a device would be asked for hundreds of small kernels
        torch._foreach_lerp_(means[True], news[True], 1 - self.momentum)
        torch._foreach_copy_(means[False], news[False])


def _by_kind(encoder: ImageEncoder) -> dict[bool, list[Tensor]]:
    """Weights and statistics (True), and BatchNorm's counts of batches (False)."""
    result: dict[bool, list[Tensor]] = {True: [], False: []}
    for x in chain(encoder.parameters(), encoder.buffers()):
        result[x.is_floating_point()].append(x)
    return result


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an encoder loads from a module's state: the teacher's part where there is one."""
    taught = {n.removeprefix(_PREFIX): x for n, x in state.items() if n.startswith(_PREFIX)}
    return taught or dict(state)
