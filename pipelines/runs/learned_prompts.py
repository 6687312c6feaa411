"""What the learned tokens of prompts are nearest to in CLIP's vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.storage.files import Json, write_json

if TYPE_CHECKING:  # reading a record needs no torch
    from torch import nn

    from reid_core.models.text_tower import TextTower

FILE_NAME = "prompts.json"
NUM_SHOWN = 6  # clusters per modality
_NUM_RECORDED = 50
_MIN_LETTERS = 3


@dataclass(frozen=True)
class Phrase:
    """The learned tokens of one cluster in words.

    Attributes:
        modality: of its images.
        cluster: its number.
        words: per token the nearest word and its similarity.
    """

    modality: str
    cluster: int
    words: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Phrases:
    """What is shown of a run.

    Attributes:
        shown: phrases of some clusters.
        chance: similarity of a random token to its nearest word.
    """

    shown: tuple[Phrase, ...]
    chance: float


def record(run_dir: Path, module: nn.Module, text: TextTower | None) -> bool:
    """Write the words that learned tokens are nearest to, for the report.

    Args:
        run_dir: a run directory.
        module: of a finished stage; those of the first 50 clusters are recorded.
        text: the tower that they were learned for; None where the model has none.

    Returns:
        Whether there was anything to record in prompts.json.
    """
    import torch

    from reid_core.attribution import near_words
    from reid_core.models.prompts import PromptLearner

    tokens = {
        name.rpartition(".")[2] or "all": learner.tokens
        for name, learner in module.named_modules()
        if isinstance(learner, PromptLearner)
    }
    if not tokens or text is None:
        return False
    words, ids = _whole_words()
    vocabulary = text.token_embedding.weight[torch.tensor(ids)].cpu()
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(64, 1, vocabulary.shape[1], generator=generator)
    chance = [near[0][0].similarity for near in near_words(random, vocabulary, words, count=1)]
    content: Json = {
        "chance": sum(chance) / len(chance),
        "words": {
            name: [
                [[near[0].word, near[0].similarity] for near in phrase]
                for phrase in near_words(result[:_NUM_RECORDED].cpu(), vocabulary, words, count=1)
            ]
            for name, result in tokens.items()
        },
    }
    write_json(run_dir / FILE_NAME, content, indent=None)
    return True


def phrases(run_dir: Path) -> Phrases | None:
    """The recorded words of the first clusters of each modality, None where there is no record."""
    path = run_dir / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shown = tuple(
            Phrase(modality, number, tuple((str(word), float(value)) for word, value in phrase))
            for modality, learned in content["words"].items()
            for number, phrase in enumerate(learned[:NUM_SHOWN])
        )
        return Phrases(shown, float(content["chance"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _whole_words() -> tuple[list[str], list[int]]:
    """Entries of CLIP's vocabulary that are words of letters alone, with their ids."""
    from reid_core.text import tokenizer

    result = [
        (entry.removesuffix("</w>"), number)
        for entry, number in tokenizer().encoder.items()
        if entry.endswith("</w>")
    ]
    remaining = [
        (word, number)
        for word, number in result
        if word.isascii() and word.isalpha() and len(word) >= _MIN_LETTERS
    ]
    return [word for word, _ in remaining], [number for _, number in remaining]
