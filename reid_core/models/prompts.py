"""Prompts with learnable words: "A visible photo of a X X X X person.", one row of X per class.

Shapes: C classes, n learnable tokens, L tokens up to EOT, W text width, E joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.models.text_tower import TextTower


@dataclass(frozen=True)
class Chosen:
    """Classes to encode, each of them once, and where they stand: labels = classes[places].

    Attributes:
        classes: (U,) int64, ascending.
        places: (B,) int64.
    """

    classes: Tensor
    places: Tensor

    @classmethod
    def of(cls, labels: np.ndarray) -> Chosen:
        """Of labels (B,), which are known before they are on a device: their number is a shape."""
        classes, places = np.unique(labels, return_inverse=True)
        return cls(torch.from_numpy(classes), torch.from_numpy(places))


class PromptLearner(nn.Module):
    """A fixed sentence around `num_tokens` learnable token embeddings per class.

    Attributes:
        tokens: (C, n, W), the only parameter beside those of the tower.
        prefix, suffix: frozen embeddings in front of and behind them; the suffix ends with EOT,
            because nothing behind it can reach the feature.
        token_ids: (77,) int64 ids of the sentence, X (343) in the learnable places.
        eot: position of the EOT token.

    The tower is shared, not copied: learners of several modalities take the same one, and the
    caller freezes it.

    Reference: CCLNet, stage 1 ("A visible / An infrared photo of a"); CSDN ("A photo of a").
    """

    token_ids: Tensor
    prefix: Tensor
    suffix: Tensor

    def __init__(
        self,
        text: TextTower,
        *,
        num_classes: int,
        prefix: str = "A visible photo of a",
        suffix: str = "person.",
        num_tokens: int = 4,
        seed: int,
    ) -> None:
        """Draws the learnable tokens from N(0, 0.02) with a generator of `seed`."""
        super().__init__()
        self.text = text
        start = int(text.tokenize([prefix])[0].argmax())
        ids = text.tokenize([f"{prefix} {'X ' * num_tokens}{suffix}"])[0]
        self.eot = int(ids.argmax())
        with torch.no_grad():
            embedded = text.token_embedding(ids[: self.eot + 1])
        self.register_buffer("token_ids", ids)
        self.register_buffer("prefix", embedded[:start].clone())
        self.register_buffer("suffix", embedded[start + num_tokens :].clone())
        generator = torch.Generator().manual_seed(seed)
        drawn = 0.02 * torch.randn(num_classes, num_tokens, text.width, generator=generator)
        self.tokens = nn.Parameter(drawn.to(embedded))

    def forward(self, chosen: Chosen | None = None) -> Tensor:
        """Text features (B, E) of the chosen classes, not normalized; None for all C in order."""
        if chosen is None:
            return self.text.encode_prompts(self._embeddings(self.tokens), self.eot)
        tokens = self._embeddings(self.tokens[chosen.classes])
        return self.text.encode_prompts(tokens, self.eot)[chosen.places]

    def _embeddings(self, tokens: Tensor) -> Tensor:
        """(C, n, W) learnable tokens inside the sentence: (C, L, W)."""
        around = (len(tokens), -1, -1)
        return torch.cat([self.prefix.expand(around), tokens, self.suffix.expand(around)], dim=1)
