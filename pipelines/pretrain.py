"""Pre-training of the small CLIP on captioned catalogue pictures; one process, no Ray.

A visitor of the demo cannot fetch OpenAI's weights; these take their place and are loaded by the
same path. `python -m pipelines.pretrain OUT` repeats the run whose result and log are
`reid_core/assets/crossreid-small.*`.

Pictures are cropped to 64 x 32, and layer4 has stride 1, as re-identification uses the tower. An
open_clip tower is square, so the 4 x 2 positions are stored with each column twice: resizing the
square grid to 4 x 2 gives back exactly the trained ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.sentences import Sentences, colour_words
from reid_core import optim
from reid_core.datasets.synthetic import Catalogue, catalogue
from reid_core.models import clip as clips
from reid_core.models.encoders import Features, TwoStemEncoder
from reid_core.transforms import Augmentation, TrainTransform, normalise
from reid_core.types import Modality

log = logging.getLogger(__name__)

HEIGHT, WIDTH = 64, 32
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Settings:
    """How the small CLIP is pre-trained; the defaults made the shipped weights.

    Attributes:
        num_images: catalogue pictures, four per person.
        held_out: people of them that only the log's scores see.
        steps: optimiser steps.
        num_people, num_pictures: people in a batch, and pictures of each.
        lr, weight_decay: of AdamW: linear warm-up over `warmup` steps, then half a cosine to 0.
        word_weight: of the prediction of a picture's words beside InfoNCE, which alone stays near
            chance.
        gray: share of the colour pictures that lose their colours, and their sentences with them.
        prompt_like: share of sentences of the form "A visible photo of a <words> person.", so that
            the prompts of CCLNet are nothing new to the text tower.
        log_every, score_every: steps between two lines of the log, and two held-out scores.
    """

    num_images: int = 24_000
    held_out: int = 200
    steps: int = 4_000
    num_people: int = 32
    num_pictures: int = 2
    lr: float = 4e-3
    weight_decay: float = 0.02
    warmup: int = 100
    word_weight: float = 30.0
    gray: float = 0.5
    prompt_like: float = 0.5
    log_every: int = 100
    score_every: int = 1000


@dataclass(frozen=True)
class Sample:
    """One batch: pictures, what is said about them, and which words hold.

    Attributes:
        images: (B, 3, H, W) float32, normalised.
        tokens: (B, 77) int64.
        people: (B,) int64.
        words: (B, V) float32, 1 where a word holds.
        known: (B, V) float32, 0 for colour words of pictures without colours.
    """

    images: Tensor
    tokens: Tensor
    people: Tensor
    words: Tensor
    known: Tensor


class Learner(nn.Module):
    """The CLIP in training and the word heads that are thrown away afterwards."""

    def __init__(self, clip: clips.Clip, *, word_rates: Tensor) -> None:
        super().__init__()
        self.encoder = TwoStemEncoder(clip, height=HEIGHT, width=WIDTH)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder.infrared_stem.requires_grad_(False)
        self.encoder.neck.requires_grad_(False)
        self.text = clip.text
        self.logit_scale = clip.model.logit_scale
        dims = {"pooled": self.encoder.feature_dim, "image": clip.embed_dim, "text": clip.embed_dim}
        self.norms = nn.ModuleDict({k: nn.BatchNorm1d(d, affine=False) for k, d in dims.items()})
        self.pooled_words = nn.Linear(self.encoder.feature_dim, len(word_rates))
        # One head for pictures and sentences: both must say "red coat" in the same direction.
        self.joint_words = nn.Linear(clip.embed_dim, len(word_rates))
        for head in (self.pooled_words, self.joint_words):
            nn.init.normal_(head.weight, std=0.02)
            # From the base rates on, every step goes into telling pictures apart.
            head.bias.data.copy_(torch.logit(word_rates, eps=1e-3))

    def forward(self, sample: Sample) -> dict[str, Tensor]:
        """The terms of the loss, unweighted."""
        features = self.image_features(sample.images)
        image = F.normalize(features.projected.float(), dim=1)
        text = F.normalize(self.text.encode_text(sample.tokens), dim=1)
        scale = self.logit_scale.exp().clamp(max=100)
        return {
            "contrast": person_contrast(scale * image @ text.T, sample.people),
            "words_pooled": self._word_loss(
                self.pooled_words(self.norms["pooled"](features.pooled)), sample
            ),
            "words_image": self._word_loss(self.joint_words(self.norms["image"](image)), sample),
            "words_text": self._word_loss(self.joint_words(self.norms["text"](text)), sample),
        }

    def image_features(self, images: Tensor) -> Features:
        """Features of normalised images, in bfloat16 where that is safe."""
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.encoder(images.contiguous(memory_format=torch.channels_last), None)

    @staticmethod
    def _word_loss(logits: Tensor, sample: Sample) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, sample.words, reduction="none")
        return (losses * sample.known).sum() / sample.known.sum()


def person_contrast(similarity: Tensor, people: Tensor) -> Tensor:
    """InfoNCE both ways in which every sentence about a person fits each of their pictures.

    Args:
        similarity: (B, B) scaled similarities, pictures x sentences.
        people: (B,) int64.
    """
    same = (people[:, None] == people).float()
    target = same / same.sum(dim=1, keepdim=True)
    rows = F.cross_entropy(similarity, target)
    return 0.5 * (rows + F.cross_entropy(similarity.T, target))


def pretrain(out_dir: str | Path, *, seed: int, settings: Settings | None = None) -> Path:
    """Trains the small CLIP and writes `crossreid-small.pt` and `crossreid-small.jsonl`.

    Args:
        out_dir: folder for the two files, created if missing.
        seed: of people, weights, batches and augmentation.
        settings: None takes the defaults.

    Returns:
        The weight file: float16 state dict of the open_clip model.
    """
    settings = settings or Settings()
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    book = catalogue(settings.num_images, seed=seed, size=HEIGHT)
    held_from = int(book.person.max()) + 1 - settings.held_out
    clip = clips.load(clips.SMALL, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = Learner(clip, word_rates=_word_rates(book))
    optimiser = optim.adamw(
        learner.named_parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    started = time.monotonic()
    sums: dict[str, float] = {}
    with (out / f"{clips.SMALL}.jsonl").open("w") as lines:
        lines.write(json.dumps({"seed": seed, **asdict(settings)}) + "\n")
        samples = draw_samples(book, settings, num_people=held_from, seed=seed)
        for step, sample in zip(range(1, settings.steps + 1), samples, strict=False):
            warm = min(1.0, step / settings.warmup)
            optim.set_lr(
                optimiser, settings.lr * warm * optim.cosine(step - 1, epochs=settings.steps)
            )
            terms = learner.train()(sample)
            words = terms["words_pooled"] + terms["words_image"] + 0.3 * terms["words_text"]
            loss = terms["contrast"] + settings.word_weight * words
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item() / settings.log_every
            line: dict[str, float] = {"step": step}
            if step % settings.log_every == 0:
                line |= {name: round(value, 4) for name, value in sums.items()}
                line |= {"scale": round(float(learner.logit_scale.exp()), 2)}
                sums = {}
            if step % settings.score_every == 0 or step == settings.steps:
                line |= held_out_scores(learner, book, held_from)
            if len(line) > 1:
                line["seconds"] = round(time.monotonic() - started, 1)
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                log.info("%s", line)
    return _export(learner.encoder, clip, out / f"{clips.SMALL}.pt")
