"""What is said about a catalogue picture while the small CLIP is pre-trained."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from reid_core.datasets.synthetic import Catalogue
from reid_core.datasets.synthetic.identities import COLOURS, HAIR_COLOURS

COLOUR_WORDS = frozenset(COLOURS + HAIR_COLOURS)
_CONTEXT = 77


class Sentences:
    """Draws a sentence for a picture: its caption, or some of its words as a prompt.

    Prompts have the form of CCLNet's, "A visible photo of a <words> person.", so that the text
    tower knows them when learnable words take the place of real ones.
    """

    def __init__(self, book: Catalogue, *, prompt_like: float) -> None:
        """`prompt_like` is the share of prompts among the sentences."""
        self.prompt_like = prompt_like
        self.captions = book.captions
        self.names, self.words = np.array(book.word_names), book.words.astype(bool)
        self.has_colour = has_colour(book)

    def draw(self, rows: np.ndarray, coloured: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Token ids (B, 77) for pictures.

        Args:
            rows: (B,) pictures of the catalogue.
            coloured: (B,) bool; colour words are left out where False.
            rng: chooses the form, the words of a prompt and their order.
        """
        ids = torch.zeros(len(rows), _CONTEXT, dtype=torch.int64)
        for line, row, colour in zip(ids, rows, coloured, strict=True):
            prompt = rng.random() < self.prompt_like
            tokens = self._prompt(row, colour, rng) if prompt else self._caption(row, colour)
            line[: len(tokens)] = torch.tensor(tokens)
        return ids

    def _caption(self, row: int, colour: bool) -> list[int]:
        text = self.captions[row]
        return _wrap(_encode(text if colour else without_colours(text)))

    def _prompt(self, row: int, colour: bool, rng: np.random.Generator) -> list[int]:
        said = phrases(tuple(self.names[self.words[row]]), colours=colour)
        kept = [phrase for phrase in said if rng.random() < 0.7] or said[:1]
        # A picture that lost its colours in training may stand for either kind of camera.
        visible = colour or (self.has_colour[row] and rng.random() < 0.5)
        middle = [token for i in rng.permutation(len(kept)) for token in _encode(kept[i])]
        start = "A visible photo of a" if visible else "An infrared photo of a"
        return _wrap((*_encode(start), *middle, *_encode("person.")))


def is_colour(book: Catalogue) -> np.ndarray:
    """(V,) bool: which of the catalogue's words name a colour."""
    return np.array([name.split()[-1] in COLOUR_WORDS for name in book.word_names])


def has_colour(book: Catalogue) -> np.ndarray:
    """(N,) bool: which pictures show colours."""
    colours: np.ndarray = book.words[:, is_colour(book)].max(axis=1)
    return colours > 0


@cache
def without_colours(caption: str) -> str:
    """The caption without colour words: "a red and blue striped coat" -> "a striped coat"."""
    colour = f"(?:{'|'.join(sorted(COLOUR_WORDS))})"
    return re.sub(rf"\b{colour}(?: and {colour})? ", "", caption)


def phrases(names: tuple[str, ...], *, colours: bool) -> list[str]:
    """Words of one picture joined by part: "upper coat", "upper red" -> "red coat".

    Args:
        names: words in the catalogue's order, in which colours stand last.
        colours: False leaves them out.
    """
    parts: dict[str, list[str]] = {}
    for name in reversed(names):
        part, _, value = name.partition(" ")
        if value not in ("none", "plain") and (colours or value not in COLOUR_WORDS):
            parts.setdefault(part, []).append(value)
    noun = {"hair": "hair", "sleeves": "sleeves", "view": "view"}
    return [
        " ".join([*values, noun.get(part, "")]).strip() or part for part, values in parts.items()
    ]


@cache
def _encode(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(text))


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def _wrap(tokens: tuple[int, ...]) -> list[int]:
    """Start, sentence, end; cut to the context."""
    special = _tokenizer()
    return [special.sot_token_id, *tokens[: _CONTEXT - 2], special.eot_token_id]
