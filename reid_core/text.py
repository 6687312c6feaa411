"""Captions as token ids, and the masking of tokens in training.

Shapes: N captions, B captions of a batch, 77 tokens: SOT, the words, EOT, zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

CONTEXT = 77
MASK, SOT, EOT = 49405, 49406, 49407


@dataclass(frozen=True)
class Tokens:
    """Token ids of captions.

    Attributes:
        ids: (N, 77) int64, padded with 0; every row holds exactly one EOT, the largest id.
        truncated: (N,) bool, captions of more than 75 tokens, which lost their end.
        empty: (N,) bool, captions without a single token.
    """

    ids: np.ndarray
    truncated: np.ndarray
    empty: np.ndarray


def tokenize(captions: Sequence[str]) -> Tokens:
    """Encodes captions with CLIP's byte pairs, lower case, HTML entities and odd spaces resolved.

    A caption that is too long is cut to 77 tokens of which the last is EOT, because the text
    tower reads its feature there. An empty one is SOT, EOT. Neither stops anything; both are
    marked, for the caller to count.

    Reference: CLIP; IRRA, for the end that a cut caption keeps.
    """
    ids = np.zeros((len(captions), CONTEXT), dtype=np.int64)
    lengths = np.zeros(len(captions), dtype=np.int64)
    for row, caption in enumerate(captions):
        # a caption that spells <end_of_text> out would end there
        words = [word for word in tokenizer().encode(caption) if word < SOT]
        lengths[row] = len(words)
        line = [SOT, *words[: CONTEXT - 2], EOT]
        ids[row, : len(line)] = line
    return Tokens(ids, truncated=lengths > CONTEXT - 2, empty=lengths == 0)


def trimmed(ids: np.ndarray) -> np.ndarray:
    """Token ids (B, 77) without the columns behind the last EOT, the largest id: (B, L)."""
    return ids[:, : int(ids.argmax(axis=1).max(initial=0)) + 1]


def mask_tokens(
    ids: np.ndarray, rows: np.ndarray, *, probability: float, seed: int, epoch: int
) -> np.ndarray:
    """Masks words at random.

    Each word is chosen with `probability`; of the chosen ones 80 % become the mask token, 10 %
    another token, 10 % stay. Where none is chosen, one word becomes the mask token. SOT, EOT and
    padding are never touched. What happens to a caption depends on (seed, epoch, row) alone, not on
    its batch or the number of workers.

    Args:
        ids: (B, 77) int64; not changed.
        rows: (B,) row ids of the captions.
        probability: share of words, 0.15 in the reference.
        seed, epoch: 0 or above.

    Returns:
        (B, 77) int64.

    Reconstruction: whether CPCL masks is unknown (`cpcl.train.text_mask`); as in IRRA. The mask
    token is id 49405, the vocabulary's last word ("jekyll"), which IRRA replaces.
    """
    uniform = np.stack([_uniform(seed, epoch, int(row)) for row in rows])
    words = (ids != 0) & (ids != SOT) & (ids != EOT)
    chosen = words & (uniform[:, 0] < probability)
    other = 1 + (uniform[:, 2] * (MASK - 1)).astype(np.int64)
    fate = uniform[:, 1]
    # where none was chosen, the word with the smallest number
    lowest = np.where(words, uniform[:, 0], 2.0).argmin(axis=1)
    none = words.any(axis=1) & ~chosen.any(axis=1)
    chosen[none, lowest[none]], fate[none, lowest[none]] = True, 0.0
    replaced = np.where(fate < 0.8, MASK, np.where(fate < 0.9, other, ids))
    return np.where(chosen, replaced, ids)


def _uniform(seed: int, epoch: int, row: int) -> np.ndarray:
    """(3, 77) numbers in [0, 1) of one caption in one epoch: chosen, fate, other token."""
    key = np.array([seed, epoch], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, row, 0], dtype=np.uint64))
    return (bits.random_raw(3 * CONTEXT) >> np.uint64(11)).reshape(3, CONTEXT) * 2.0**-53


@cache
def tokenizer() -> SimpleTokenizer:
    """CLIP's, made once."""
    from open_clip.tokenizer import SimpleTokenizer  # its package takes two seconds

    return SimpleTokenizer()
