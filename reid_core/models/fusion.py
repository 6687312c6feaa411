"""Integration of the two modalities' texts of an identity into one anchor.

Shapes: B texts, E joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextFusion(nn.Module):
    """One modality's text plus what attention adds from the other's: (B, E), (B, E) -> (B, E).

    An identity has one text per modality: attention has one key and its weight is exactly 1. What
    is left is t = own + output(keep * tanh(value(other))); query and key receive zero gradients
    and are there because the released weights hold them.

    Reference: CSDN, stage 2, Semantic Information Integration.
    """

    def __init__(self, width: int, *, seed: int) -> None:
        """Draws the four linear maps of E = `width` with a generator of `seed`."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query, self.key, self.value, self.output = (
                nn.Linear(width, width) for _ in range(4)
            )

    def forward(self, own: Tensor, other: Tensor, keep: Tensor | None = None) -> Tensor:
        """Fused texts, not normalized.

        Args:
            own: (B, E) texts that ask and that the answer is added to.
            other: (B, E) texts that are attended to.
            keep: (B, E) factors on the values, see `dropout_factors`; None for all 1. They are an
                argument so that they do not depend on which worker holds a row. The reference
                also drops queries and keys, without effect.
        """
        query, key, value = (
            torch.tanh(layer(text)).unsqueeze(1)
            for layer, text in ((self.query, own), (self.key, other), (self.value, other))
        )
        scores = query @ key.transpose(1, 2) / own.shape[1] ** 0.5
        attended = (scores.softmax(dim=2) @ value).squeeze(1)
        addition: Tensor = self.output(attended if keep is None else keep * attended)
        return own + addition


def dropout_factors(shape: tuple[int, int], *, rate: float, seed: int) -> Tensor:
    """(B, E) factors of inverted dropout: 0 with probability `rate`, else 1 / (1 - rate)."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (drawn >= rate) / (1 - rate)
