"""Batches of catalogue images, spoiled as cameras do, and of what is said about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.augmentation import Augmentation
from reid_core.datasets.synthetic import Catalogue
from reid_core.pretraining.captioning import Sentences, has_color, is_color
from reid_core.transforms import TrainTransform, normalize

HEIGHT, WIDTH = 96, 48
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Settings:
    """How a small model is pre-trained; the defaults are those of the shipped "crossreid-small".

    Attributes:
        num_images: catalogue images, four per identity.
        held_out: identities of them that only the scores at the end of the log see.
        steps: optimizer steps.
        num_identities, images_each: identities in a batch, and images of each.
        lr, weight_decay: of AdamW; linear warm-up over `warmup` steps, then half a cosine to 0.
        muon_lr: of Muon, which then trains the matrices of the blocks; None leaves them to AdamW.
        word_weight: of the prediction of an image's words; InfoNCE alone stays near chance.
        view_weight: of the contrasts between images, in which those of an identity belong together:
            one for the projected feature, one for the pooled one, which is the descriptor.
        gray: share of the color images that lose their colors, and their sentences with them.
        prompt_like: share of sentences "A visible photo of a <words> person.", so that CCLNet's
            prompts are nothing new to the text tower.
        match_weight: of what a student's features lack to its teacher's; see `learners.Student`.
        log_every: steps between two lines of the log, and between two saved states.
    """

    num_images: int = 12_000
    held_out: int = 200
    steps: int = 2_500
    num_identities: int = 32
    images_each: int = 2
    lr: float = 4e-3
    muon_lr: float | None = None
    weight_decay: float = 0.02
    warmup: int = 100
    word_weight: float = 30.0
    view_weight: float = 0.5
    gray: float = 0.5
    prompt_like: float = 0.5
    match_weight: float = 20.0
    log_every: int = 100


@dataclass(frozen=True)
class Sample:
    """One batch: images, what is said about them, and which words hold.

    Attributes:
        images: (B, 3, H, W) float32, normalized.
        identities: (B,) int64.
        captioned: (T,) int64, the images that come with a sentence.
        tokens: (T, 77) int64, their sentences.
        words: (B, V) float32, 1 where a word holds.
        known: (B, V) float32, 0 for color words of images without colors.
    """

    images: Tensor
    identities: Tensor
    captioned: Tensor
    tokens: Tensor
    words: Tensor
    known: Tensor


class Sampler:
    """Draws batches: some identities, some images of each, one sentence per image."""

    def __init__(self, book: Catalogue, settings: Settings, *, seed: int) -> None:
        self.settings = settings
        self.rng = np.random.default_rng(seed)
        margin = (book.images.shape[2] - WIDTH) // 2
        tall = book.images[:, :, margin : margin + WIDTH]
        self.images = np.ascontiguousarray(tall.transpose(0, 3, 1, 2))
        self.identity, self.words = book.identity, book.words
        self.is_color, self.has_color = is_color(book), has_color(book)
        self.sentences = Sentences(book, prompt_like=settings.prompt_like)
        self.transform = TrainTransform(Augmentation(pad=4, erase_area=(0.02, 0.2)))

    def draw(self, *, captioned: bool = True) -> Sample:
        """The next batch of identities who are not held out; without `captioned` no sentences."""
        chosen = self.settings
        trained = int(self.identity[-1]) + 1 - chosen.held_out
        identities = self.rng.choice(trained, chosen.num_identities, replace=False)
        first = np.searchsorted(self.identity, identities)
        count = np.searchsorted(self.identity, identities, side="right") - first
        order = self.rng.random((chosen.num_identities, int(count.max()))).argsort(axis=1)
        rows = (first[:, None] + order[:, : chosen.images_each] % count[:, None]).ravel()
        colored = self.has_color[rows] & (self.rng.random(len(rows)) >= chosen.gray)
        # One sentence per identity: reading costs more than looking.
        images = np.arange(0, len(rows) if captioned else 0, chosen.images_each)
        return self.sample(rows, colored, captioned=images)

    def sample(self, rows: np.ndarray, colored: np.ndarray, *, captioned: np.ndarray) -> Sample:
        """Augmented images of the rows, gray where not `colored`; sentences of rows[captioned]."""
        seeds = self.rng.integers(0, 2**63, len(rows)).astype(np.uint64)
        gray = torch.from_numpy(~colored)
        known = torch.ones(len(rows), len(self.is_color))
        known[gray[:, None] & torch.from_numpy(self.is_color)] = 0.0
        images = self.transform(self.images[rows], seeds)
        return Sample(
            images=_spoil(torch.from_numpy(images), gray, self.rng),
            identities=torch.from_numpy(self.identity[rows]),
            captioned=torch.from_numpy(captioned),
            tokens=self.sentences.draw(rows[captioned], colored[captioned], self.rng),
            words=torch.from_numpy(self.words[rows]).float(),
            known=known,
        )


def word_rates(sampler: Sampler) -> Tensor:
    """(V,) share of the images for which a word holds; colors among the colored ones."""
    rates = sampler.words.mean(axis=0)
    rates[sampler.is_color] = sampler.words[sampler.has_color][:, sampler.is_color].mean(axis=0)
    return torch.from_numpy(rates).float()


def _spoil(images: Tensor, gray: Tensor, rng: np.random.Generator) -> Tensor:
    """Takes colors away where `gray`, and varies light, color cast, contrast, blur and noise.

    Args:
        images: (B, 3, H, W) uint8.
        gray: (B,) bool.

    Returns:
        (B, 3, H, W) float32, normalized.
    """

    def uniform(spread: float, channels: int = 1) -> Tensor:
        drawn = rng.uniform(-spread, spread, (len(images), channels, 1, 1))
        return torch.from_numpy(drawn).float()

    flat = gray[:, None, None, None]
    x = images.float() / 255
    x = torch.where(flat, (x * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True), x)
    x = x * (1 + uniform(0.2)) * (1 + uniform(0.12, 3) * ~flat)
    mean = x.mean(dim=(2, 3), keepdim=True)
    x = (x - mean) * (1 + uniform(0.3)) + mean + uniform(0.06)
    x = x.lerp(F.avg_pool2d(x, 3, stride=1, padding=1), uniform(0.8).abs())
    grain = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    x = x + uniform(0.03).abs() * torch.where(flat, grain[:, :1], grain)
    return normalize(x.mul(255).round().clamp(0, 255).to(torch.uint8))
