"""What is said about a catalogue image while the small CLIP is pre-trained."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import torch
from torch import Tensor

from reid_core.datasets.synthetic import Catalogue
from reid_core.datasets.synthetic.identities import COLORS, HAIR_COLORS
from reid_core.text import tokenizer

COLOR_WORDS = frozenset(COLORS + HAIR_COLORS)
_CONTEXT = 77


class Sentences:
    """Draws a sentence for an image: its caption, or some of its words as a prompt.

    Prompts have the form of CCLNet's, "A visible photo of a <words> person.", so that the text
    tower knows them when learnable words take the place of real ones.
    """

    def __init__(self, book: Catalogue, *, prompt_like: float) -> None:
        """`prompt_like` is the share of prompts among the sentences."""
        self.prompt_like = prompt_like
        self.captions = book.captions
        self.names, self.words = np.array(book.word_names), book.words.astype(bool)
        self.has_color = has_color(book)

    def draw(self, rows: np.ndarray, colored: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Token ids (B, 77) for images.

        Args:
            rows: (B,) images of the catalogue.
            colored: (B,) bool; color words are left out where False.
            rng: chooses the form, the words of a prompt and their order.
        """
        ids = torch.zeros(len(rows), _CONTEXT, dtype=torch.int64)
        for line, row, color in zip(ids, rows, colored, strict=True):
            prompt = rng.random() < self.prompt_like
            tokens = self._prompt(row, color, rng) if prompt else self._caption(row, color)
            line[: len(tokens)] = torch.tensor(tokens)
        return ids

    def _caption(self, row: int, color: bool) -> list[int]:
        text = self.captions[row]
        return _wrap(_encode(text if color else without_colors(text)))

    def _prompt(self, row: int, color: bool, rng: np.random.Generator) -> list[int]:
        said = phrases(tuple(self.names[self.words[row]]), colors=color)
        remaining = [phrase for phrase in said if rng.random() < 0.7] or said[:1]
        # An image that lost its colors in training may stand for either kind of camera.
        visible = color or (self.has_color[row] and rng.random() < 0.5)
        middle = [token for i in rng.permutation(len(remaining)) for token in _encode(remaining[i])]
        start = "A visible photo of a" if visible else "An infrared photo of a"
        return _wrap((*_encode(start), *middle, *_encode("person.")))


def is_color(book: Catalogue) -> np.ndarray:
    """(V,) bool: which of the catalogue's words name a color."""
    return np.array([name.split()[-1] in COLOR_WORDS for name in book.word_names])


def has_color(book: Catalogue) -> np.ndarray:
    """(N,) bool: which images show colors."""
    colors: np.ndarray = book.words[:, is_color(book)].max(axis=1)
    return colors > 0


@cache
def without_colors(caption: str) -> str:
    """The caption without color words: "a red and blue striped coat" -> "a striped coat"."""
    color = f"(?:{'|'.join(sorted(COLOR_WORDS))})"
    return re.sub(rf"\b{color}(?: and {color})? ", "", caption)


def phrases(names: tuple[str, ...], *, colors: bool) -> list[str]:
    """Words of one image joined by part: "upper coat", "upper red" -> "red coat".

    Args:
        names: words in the catalogue's order, in which colors stand last.
        colors: False leaves them out.
    """
    parts: dict[str, list[str]] = {}
    for name in reversed(names):
        part, _, value = name.partition(" ")
        if value not in ("none", "plain") and (colors or value not in COLOR_WORDS):
            parts.setdefault(part, []).append(value)
    noun = {"hair": "hair", "sleeves": "sleeves", "view": "view"}
    return [
        " ".join([*values, noun.get(part, "")]).strip() or part for part, values in parts.items()
    ]


@cache
def _encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text))


def _wrap(tokens: tuple[int, ...]) -> list[int]:
    """Start, sentence, end; cut to the context."""
    special = tokenizer()
    return [special.sot_token_id, *tokens[: _CONTEXT - 2], special.eot_token_id]
