"""CLIP's text tower, which takes token embeddings.

Shapes: C texts, L tokens, W text width, E joint embedding.
"""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from reid_core import text


class TextTower(nn.Module):
    """CLIP's text transformer, from token embeddings to the joint space.

    Shares its parameters with the model it was taken from.
    """

    attn_mask: Tensor

    def __init__(self, model: open_clip.CLIP) -> None:
        """Takes the text half out of `model`."""
        super().__init__()
        self.token_embedding: nn.Embedding = model.token_embedding
        self.positional_embedding: nn.Parameter = model.positional_embedding
        self.transformer: nn.Module = model.transformer
        self.ln_final: nn.Module = model.ln_final
        self.text_projection: nn.Parameter = model.text_projection
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)

    @property
    def width(self) -> int:
        """W, the width of a token embedding."""
        return self.token_embedding.embedding_dim

    @property
    def context_length(self) -> int:
        """Tokens of a padded sentence: 77."""
        return self.positional_embedding.shape[0]

    @property
    def embed_dim(self) -> int:
        """E, the width of a text feature."""
        return self.text_projection.shape[1]

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (C, 77) int64, zero padded, on the tower's device."""
        return torch.from_numpy(text.tokenize(texts).ids).to(self.positional_embedding.device)

    def encode_text(self, ids: Tensor, *, chunk: int = 256) -> Tensor:
        """Features (C, E), not normalized, of token ids (C, 77); the EOT is the largest id."""
        # Padding behind the last EOT is cut before the lookup: it cannot matter.
        eot = ids.argmax(dim=-1)
        return self.encode_prompts(
            self.token_embedding(ids[:, : int(eot.max()) + 1]), eot, chunk=chunk
        )

    def encode_trimmed(self, ids: Tensor) -> Tensor:
        """`encode_text` of ids (C, L) that end with the longest sentence, see `text.trimmed`.

        Nothing is asked of the device, and all sentences pass at once.
        """
        return self._encode(self.token_embedding(ids), ids.argmax(dim=-1), ids.shape[1])

    def encode_prompts(self, embeddings: Tensor, eot: Tensor | int, *, chunk: int = 256) -> Tensor:
        """Features of sentences that are given as token embeddings.

        Attention is causal and only the EOT position is read, so what stands behind a chunk's
        largest EOT is never computed: the result is exactly that of all 77 positions.

        Args:
            embeddings: (C, L, W) token embeddings without positions, L > eot; may carry gradients.
            eot: position of the EOT token, (C,) int64 or one number for all.
            chunk: sentences per pass; bounds memory where no gradient is needed.

        Returns:
            (C, E) text features, not normalized.

        Raises:
            ValueError: an EOT position lies outside the L tokens.
        """
        if isinstance(eot, int):  # known here: no device is asked
            ends = torch.full((len(embeddings),), eot, device=embeddings.device)
            last = [eot] * len(ends.split(chunk))
        else:
            ends = eot
            last = [int(at.max()) if len(at) else -1 for at in ends.split(chunk)]
        if len(ends) and max(last) >= embeddings.shape[1]:
            raise ValueError(
                f"the EOT token stands at position {max(last)}, but only "
                f"{embeddings.shape[1]} token embeddings were given"
            )
        parts = zip(embeddings.split(chunk), ends.split(chunk), last, strict=True)
        return torch.cat([self._encode(rows, at, end + 1) for rows, at, end in parts])

    def _encode(self, embeddings: Tensor, ends: Tensor, length: int) -> Tensor:
        """Of sentences whose last EOT stands at `length` - 1."""
        x = embeddings[:, :length].to(self.positional_embedding.dtype)
        x = x + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        at_end = x[torch.arange(len(x), device=x.device), ends]
        ended: Tensor = self.ln_final(at_end)
        return ended @ self.text_projection
