"""Pre-training of the small CLIP on catalogue pictures of generated people; no Ray, one process.

What a visitor of the demo gets instead of OpenAI's weights. Run it with
`python -m pipelines.pretrain --out DIR`; the shipped weights and their log are
`reid_core/assets/crossreid-small.*`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reid_core.models import clip as clips
from reid_core.models.encoders import TwoStemEncoder

log = logging.getLogger(__name__)

SIZE = 64
_HELD_OUT_PEOPLE = 200


@dataclass(frozen=True)
class Settings:
    """How the small CLIP is pre-trained.

    Attributes:
        num_images: catalogue pictures, a few per person.
        steps: optimiser steps.
        num_people, num_pictures: people in a batch and pictures of each of them.
        lr, weight_decay: of AdamW; linear warm-up over `warmup` steps, then a cosine to 0.
        word_weight: of the prediction of a picture's words; InfoNCE alone stays near chance.
        gray: share of the colour pictures that lose their colours, and their captions with them.
    """

    num_images: int = 24_000
    steps: int = 3_000
    num_people: int = 64
    num_pictures: int = 2
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 100
    word_weight: float = 30.0
    gray: float = 0.5


class Learner(nn.Module):
    """The CLIP in training and what is thrown away afterwards: the word heads."""

    def __init__(self, clip: clips.Clip, *, num_words: int) -> None:
        super().__init__()
        self.encoder = TwoStemEncoder(clip, height=SIZE, width=SIZE)
        self.encoder.infrared_stem.requires_grad_(False)
        self.text = clip.text
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.pooled_words = nn.Linear(self.encoder.feature_dim, num_words)
        # One head for pictures and sentences: both must say "red coat" in the same direction.
        self.joint_words = nn.Linear(clip.embed_dim, num_words)
        self.word_scale = nn.Parameter(torch.tensor(10.0))
