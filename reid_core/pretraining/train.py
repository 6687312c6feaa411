"""Pre-training of the small CLIP on captioned catalogue pictures; one process, no Ray.

A visitor of the demo cannot fetch OpenAI's weights; `reid_core/assets/crossreid-small.pt` takes
their place and is loaded by the same path. `python -m reid_core.pretraining.train OUT` makes it
again in about nine minutes on one core; its log lies beside it.

Pictures are cropped to 96 x 48 and layer4 has stride 1, as re-identification uses the tower. An
open_clip tower is square, so the 6 x 3 positions are stored with each column twice: resizing the
square grid to 6 x 3 gives back exactly the trained ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid_core import optim
from reid_core.datasets.synthetic import Catalogue, catalogue
from reid_core.models import clip as clips
from reid_core.models.encoders import TwoStemEncoder
from reid_core.pretraining.captioning import Sentences, has_colour, is_colour
from reid_core.transforms import Augmentation, TrainTransform, normalize
from reid_core.types import Modality

log = logging.getLogger(__name__)

HEIGHT, WIDTH = 96, 48
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Settings:
    """How the small CLIP is pre-trained; the defaults are those of the shipped weights.

    Attributes:
        num_images: catalogue pictures, four per person.
        held_out: people of them that only the scores at the end of the log see.
        steps: optimizer steps.
        num_people, num_pictures: people in a batch, and pictures of each.
        lr, weight_decay: of AdamW; linear warm-up over `warmup` steps, then half a cosine to 0.
        word_weight: of the prediction of a picture's words; InfoNCE alone stays near chance.
        view_weight: of the contrasts between pictures, in which those of a person belong together:
            one for the projected feature, one for the pooled one, which is the descriptor.
        gray: share of the colour pictures that lose their colours, and their sentences with them.
        prompt_like: share of sentences "A visible photo of a <words> person.", so that CCLNet's
            prompts are nothing new to the text tower.
        log_every: steps between two lines of the log.
    """

    num_images: int = 12_000
    held_out: int = 200
    steps: int = 2_500
    num_people: int = 32
    num_pictures: int = 2
    lr: float = 4e-3
    weight_decay: float = 0.02
    warmup: int = 100
    word_weight: float = 30.0
    view_weight: float = 0.5
    gray: float = 0.5
    prompt_like: float = 0.5
    log_every: int = 100


@dataclass(frozen=True)
class Sample:
    """One batch: pictures, what is said about them, and which words hold.

    Attributes:
        images: (B, 3, H, W) float32, normalized.
        people: (B,) int64.
        told: (T,) int64, the pictures that come with a sentence.
        tokens: (T, 77) int64, their sentences.
        words: (B, V) float32, 1 where a word holds.
        known: (B, V) float32, 0 for colour words of pictures without colours.
    """

    images: Tensor
    people: Tensor
    told: Tensor
    tokens: Tensor
    words: Tensor
    known: Tensor


class Sampler:
    """Draws batches: some people, some pictures of each, one sentence per picture."""

    def __init__(self, book: Catalogue, settings: Settings, *, seed: int) -> None:
        self.settings = settings
        self.rng = np.random.default_rng(seed)
        margin = (book.images.shape[2] - WIDTH) // 2
        tall = book.images[:, :, margin : margin + WIDTH]
        self.images = np.ascontiguousarray(tall.transpose(0, 3, 1, 2))
        self.person, self.words = book.person, book.words
        self.is_colour, self.has_colour = is_colour(book), has_colour(book)
        self.sentences = Sentences(book, prompt_like=settings.prompt_like)
        self.transform = TrainTransform(Augmentation(pad=4, erase_area=(0.02, 0.2)))

    def draw(self) -> Sample:
        """The next batch of people who are not held out."""
        chosen = self.settings
        trained = int(self.person[-1]) + 1 - chosen.held_out
        people = self.rng.choice(trained, chosen.num_people, replace=False)
        first = np.searchsorted(self.person, people)
        count = np.searchsorted(self.person, people, side="right") - first
        order = self.rng.random((chosen.num_people, int(count.max()))).argsort(axis=1)
        rows = (first[:, None] + order[:, : chosen.num_pictures] % count[:, None]).ravel()
        coloured = self.has_colour[rows] & (self.rng.random(len(rows)) >= chosen.gray)
        # One sentence per person: reading costs more than looking.
        told = np.arange(0, len(rows), chosen.num_pictures)
        return self.sample(rows, coloured, told=told)

    def sample(self, rows: np.ndarray, coloured: np.ndarray, *, told: np.ndarray) -> Sample:
        """Augmented pictures of the rows, gray where not `coloured`; sentences of rows[told]."""
        seeds = self.rng.integers(0, 2**63, len(rows)).astype(np.uint64)
        gray = torch.from_numpy(~coloured)
        known = torch.ones(len(rows), len(self.is_colour))
        known[gray[:, None] & torch.from_numpy(self.is_colour)] = 0.0
        pictures = self.transform(self.images[rows], seeds)
        return Sample(
            images=_spoil(torch.from_numpy(pictures), gray, self.rng),
            people=torch.from_numpy(self.person[rows]),
            told=torch.from_numpy(told),
            tokens=self.sentences.draw(rows[told], coloured[told], self.rng),
            words=torch.from_numpy(self.words[rows]).float(),
            known=known,
        )


class Learner(nn.Module):
    """The CLIP in training and the word heads that are thrown away afterwards."""

    def __init__(self, clip: clips.Clip, *, word_rates: Tensor) -> None:
        super().__init__()
        self.encoder = TwoStemEncoder(clip, height=HEIGHT, width=WIDTH)
        self.encoder.to(memory_format=torch.channels_last)
        self.encoder.infrared_stem.requires_grad_(False)
        self.encoder.neck.requires_grad_(False)
        self.text = clip.text
        self.logit_scale = clip.model.logit_scale
        widths = {
            "pooled": self.encoder.feature_dim,
            "image": clip.embed_dim,
            "text": clip.embed_dim,
        }
        self.norms = nn.ModuleDict(
            {name: nn.BatchNorm1d(width, affine=False) for name, width in widths.items()}
        )
        self.pooled_words = nn.Linear(self.encoder.feature_dim, len(word_rates))
        # One head for pictures and sentences: both must say "red coat" in the same direction.
        self.joint_words = nn.Linear(clip.embed_dim, len(word_rates))
        for head in (self.pooled_words, self.joint_words):
            # From the base rates on, every step goes into telling pictures apart.
            head.bias.data.copy_(torch.logit(word_rates, eps=1e-3))
            head.weight.data.mul_(0.3)

    def forward(self, sample: Sample) -> dict[str, Tensor]:
        """The terms of the loss, unweighted."""
        images = sample.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            features = self.encoder(images, None)
        image = F.normalize(features.projected.float(), dim=1)
        text = F.normalize(self._sentence_features(sample.tokens), dim=1)
        scale = self.logit_scale.exp().clamp(max=100)
        told = sample.told
        pooled_words = self.pooled_words(self.norms["pooled"](features.pooled))
        image_words = self.joint_words(self.norms["image"](image))
        text_words = self.joint_words(self.norms["text"](text))
        return {
            "contrast": person_contrast(scale * image @ text.T, sample.people, sample.people[told]),
            "views_image": view_contrast(image, sample.people),
            "views_pooled": view_contrast(F.normalize(features.pooled, dim=1), sample.people),
            "words_pooled": word_loss(pooled_words, sample.words, sample.known),
            "words_image": word_loss(image_words, sample.words, sample.known),
            "words_text": word_loss(text_words, sample.words[told], sample.known[told]),
        }

    def _sentence_features(self, tokens: Tensor) -> Tensor:
        # Short sentences apart from long ones: half of the tokens would be padding.
        order = tokens.argmax(dim=1).argsort()
        return self.text.encode_text(tokens[order], chunk=16)[order.argsort()]


def pretrain(out_dir: str | Path, *, seed: int, settings: Settings | None = None) -> Path:
    """Trains the small CLIP and writes `crossreid-small.pt` and `crossreid-small.jsonl`.

    Args:
        out_dir: folder for the two files, created if missing.
        seed: of people, weights, batches and augmentation.
        settings: None takes the defaults.

    Returns:
        The weight file: a float16 state dict of the open_clip model.
    """
    settings = settings or Settings()
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(catalogue(settings.num_images, seed=seed, size=HEIGHT), settings, seed=seed)
    clip = clips.load(clips.SMALL, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = Learner(clip, word_rates=_word_rates(sampler))
    with (out / f"{clips.SMALL}.jsonl").open("w") as lines:
        lines.write(json.dumps({"seed": seed, **asdict(settings)}) + "\n")
        for line in _train(learner, sampler, settings):
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            log.info("%s", line)
    fold_scale(learner, sampler)
    path = out / f"{clips.SMALL}.pt"
    torch.save(exported(learner.encoder, clip), path)
    return path


def _train(learner: Learner, sampler: Sampler, settings: Settings) -> Iterator[dict[str, float]]:
    """Yields the log, line by line; the last one holds the held-out scores."""
    optimizer = optim.adamw(
        learner.named_parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    started = time.monotonic()
    recent: list[Tensor] = []
    for step in range(settings.steps):
        warm = min(1.0, (step + 1) / settings.warmup)
        optim.set_lr(optimizer, settings.lr * warm * optim.cosine(step, epochs=settings.steps))
        terms = learner.train()(sampler.draw())
        words = terms["words_pooled"] + terms["words_image"] + 0.3 * terms["words_text"]
        views = terms["views_image"] + terms["views_pooled"]
        loss = terms["contrast"] + settings.view_weight * views
        optimizer.zero_grad(set_to_none=True)
        (loss + settings.word_weight * words).backward()
        optimizer.step()
        recent.append(torch.stack(list(terms.values())).detach())
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
            means = torch.stack(recent).mean(dim=0).tolist()
            recent = []
            yield {
                "step": step + 1,
                **{name: round(mean, 4) for name, mean in zip(terms, means, strict=True)},
                "scale": round(float(learner.logit_scale.detach().exp()), 2),
                "seconds": round(time.monotonic() - started, 1),
            }
    yield {"step": settings.steps, **held_out_scores(learner, sampler)}


def person_contrast(similarity: Tensor, pictured: Tensor, told: Tensor) -> Tensor:
    """InfoNCE both ways in which every sentence about a person fits each of their pictures.

    Args:
        similarity: (B, T) scaled similarities, pictures x sentences.
        pictured, told: (B,) and (T,) int64, the people; everyone stands in both.
    """
    same = (pictured[:, None] == told).float()
    by_picture = F.cross_entropy(similarity, same / same.sum(dim=1, keepdim=True))
    by_sentence = F.cross_entropy(similarity.T, same.T / same.T.sum(dim=1, keepdim=True))
    return 0.5 * (by_picture + by_sentence)


def view_contrast(image: Tensor, people: Tensor, *, temperature: float = 0.1) -> Tensor:
    """InfoNCE between pictures: the others of the same person against all others.

    Args:
        image: (B, E) unit rows.
        people: (B,) int64, everyone at least twice.
    """
    itself = torch.eye(len(people), dtype=torch.bool)
    same = ((people[:, None] == people) & ~itself).float()
    logits = (image @ image.T / temperature).masked_fill(itself, -1e4)
    return F.cross_entropy(logits, same / same.sum(dim=1, keepdim=True))


@torch.no_grad()
def held_out_scores(learner: Learner, sampler: Sampler) -> dict[str, float]:
    """Shares of right first answers among people that were never trained on.

    Returns:
        "sentence": the sentence of the right person for a picture, by the projected feature;
        "projected", "pooled": a coloured picture of the right person for a gray one.
    """
    learner.eval()
    encoder = learner.encoder
    rows = np.flatnonzero(sampler.person > sampler.person[-1] - sampler.settings.held_out)
    sample = sampler.sample(rows, sampler.has_colour[rows], told=np.arange(len(rows)))
    projected = F.normalize(encoder.project(sample.images, Modality.VISIBLE), dim=1)
    pooled = encoder.embed(sample.images, Modality.VISIBLE)
    text = F.normalize(learner.text.encode_text(sample.tokens), dim=1)
    coloured = torch.from_numpy(sampler.has_colour[rows])

    def first_answers(queries: Tensor, answers: Tensor, asked: Tensor, given: Tensor) -> float:
        best = (queries[asked] @ answers[given].T).argmax(dim=1)
        known = torch.isin(sample.people[asked], sample.people[given])
        right = sample.people[asked] == sample.people[given][best]
        return round(float(right[known].float().mean()), 4)

    everyone = torch.ones_like(coloured)
    return {
        "sentence": first_answers(projected, text, everyone, everyone),
        "projected": first_answers(projected, projected, ~coloured, coloured),
        "pooled": first_answers(pooled, pooled, ~coloured, coloured),
    }


@torch.no_grad()
def fold_scale(learner: Learner, sampler: Sampler) -> None:
    """Scales both projections so that the plain product of two features is the trained logit.

    Prompt methods compare projected and text features without norm or temperature; they count on
    products of the size that CLIP's have.
    """
    learner.eval()
    rows = np.arange(min(512, len(sampler.images)))
    sample = sampler.sample(rows, sampler.has_colour[rows], told=rows)
    length = float(learner.logit_scale.exp()) ** 0.5
    image = learner.encoder.project(sample.images, Modality.VISIBLE).norm(dim=1).mean()
    text = learner.text.encode_text(sample.tokens).norm(dim=1).mean()
    for weight in learner.encoder.attnpool.c_proj.parameters():
        weight.mul_(length / image)
    learner.text.text_projection.mul_(length / text)


def exported(encoder: TwoStemEncoder, clip: clips.Clip) -> dict[str, Tensor]:
    """State dict of the open_clip model with the encoder's weights, in float16."""
    pool = encoder.attnpool.state_dict()
    positions = pool["positional_embedding"]
    grid = positions[1:].unflatten(0, (HEIGHT // 16, WIDTH // 16)).repeat_interleave(2, dim=1)
    pool["positional_embedding"] = torch.cat([positions[:1], grid.flatten(0, 1)])
    visual = encoder.visible_stem.state_dict() | encoder.trunk.state_dict()
    visual |= {f"attnpool.{name}": value for name, value in pool.items()}
    state = clip.model.state_dict() | {f"visual.{name}": value for name, value in visual.items()}
    return {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    }


def _word_rates(sampler: Sampler) -> Tensor:
    """(V,) share of the pictures for which a word holds; colours among the coloured ones."""
    rates = sampler.words.mean(axis=0)
    rates[sampler.is_colour] = sampler.words[sampler.has_colour][:, sampler.is_colour].mean(axis=0)
    return torch.from_numpy(rates).float()


def word_loss(logits: Tensor, words: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy over the words (B, V) whose truth is known, mean over those."""
    losses = F.binary_cross_entropy_with_logits(logits, words, reduction="none")
    return (losses * known).sum() / known.sum()


def _spoil(images: Tensor, gray: Tensor, rng: np.random.Generator) -> Tensor:
    """Takes colours away where `gray`, and varies light, colour cast, contrast, blur and noise.

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


def main() -> None:
    """python -m reid_core.pretraining.train OUT [--seed N] [--steps N] [--threads N]."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(chosen.threads)
    pretrain(chosen.out, seed=chosen.seed, settings=replace(Settings(), steps=chosen.steps))


if __name__ == "__main__":
    main()
