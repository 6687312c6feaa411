"""Pre-training of the two small models on captioned catalogue images; one process, no Ray.

A visitor of the demo cannot fetch OpenAI's weights; `reid_core/assets/crossreid-small.pt` takes
their place and is loaded by the same path, `crossreid-small-vit.pt` that of a vision transformer.
`python -m reid_core.pretraining.train OUT [--name crossreid-small-vit]` makes one of them again; on
one core the ResNet took nine minutes, the transformer 37; the logs lie beside them. Stopped, the
same command goes on.

Images are cropped to 96 x 48 and layer4 has stride 1, as re-identification uses the tower. A
ResNet of open_clip is square, so its 6 x 3 positions are stored with each column twice: resizing
the square grid to 6 x 3 gives back exactly the trained ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from reid_core import optim
from reid_core.datasets.synthetic import catalogue
from reid_core.models import backbones
from reid_core.models.backbones import SMALL, SMALL_VIT, Backbone
from reid_core.models.encoders import ImageEncoder
from reid_core.pretraining.batches import HEIGHT, WIDTH, Sampler, Settings, word_rates
from reid_core.pretraining.learners import Learner, Student
from reid_core.types import Modality

log = logging.getLogger(__name__)

SETTINGS = {
    SMALL: Settings(),
    SMALL_VIT: Settings(lr=2e-3, muon_lr=0.02, warmup=30),
}


def pretrain(
    out_dir: str | Path, *, seed: int, name: str = SMALL, settings: Settings | None = None
) -> Path:
    """Trains a small model and writes `<name>.pt` and `<name>.jsonl`; goes on where it was stopped.

    Args:
        out_dir: folder for the files, created if missing.
        seed: of identities, weights, batches and augmentation.
        name: "crossreid-small", or "crossreid-small-vit", which needs the other's bundled weights.
        settings: None takes the model's own.

    Returns:
        The weight file: a float16 state dict of the open_clip model.
    """
    settings = settings or SETTINGS[name]
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(catalogue(settings.num_images, seed=seed, size=HEIGHT), settings, seed=seed)
    clip = backbones.load(name, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner: Learner | Student
        if name == SMALL:
            learner = Learner(clip, word_rates=word_rates(sampler))
        else:
            teacher = backbones.load(SMALL, "bundled")
            learner = Student(clip, teacher, word_rates=word_rates(sampler))
    _write_log(out / f"{name}.jsonl", {"seed": seed, **asdict(settings)}, learner, sampler)
    learner.eval()
    rows = np.arange(min(512, len(sampler.images)))
    learner.fold_scale(sampler.sample(rows, sampler.has_color[rows], captioned=rows))
    path = out / f"{name}.pt"
    torch.save(exported(learner.encoder, clip), path)
    return path


def _write_log(
    path: Path, head: dict[str, Any], learner: Learner | Student, sampler: Sampler
) -> None:
    """Trains; a state beside the log holds what is needed to go on from its last line."""
    remaining, settings = path.with_suffix(".state"), sampler.settings
    optimizers = _optimizers(learner, settings)
    done = 0
    if remaining.exists():
        state = torch.load(remaining, weights_only=True)
        if state["head"] == head:
            done = state["step"]
            learner.load_state_dict(state["learner"])
            for optimizer, x in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(x)
            sampler.rng.bit_generator.state = state["rng"]
    with path.open("a" if done else "w") as lines:
        if not done:
            lines.write(json.dumps(head) + "\n")
        for line in _train(learner, sampler, optimizers, start=done):
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            log.info("%s", line)
            torch.save(
                {
                    "head": head,
                    "step": line["step"],
                    "learner": learner.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "rng": sampler.rng.bit_generator.state,
                },
                remaining,
            )
        scores = held_out_scores(learner, sampler)
        lines.write(json.dumps({"step": settings.steps, **scores}) + "\n")
    remaining.unlink()


def _optimizers(learner: Learner | Student, settings: Settings) -> list[Optimizer]:
    """AdamW, and Muon for the matrices of the blocks where it has a rate."""
    named = [(name, p) for name, p in learner.named_parameters() if p.requires_grad]
    if settings.muon_lr is None:
        return [optim.adamw(named, lr=settings.lr, weight_decay=settings.weight_decay)]
    matrices = {name for name, p in named if ".trunk.blocks." in name and p.ndim == 2}
    rest = [(name, p) for name, p in named if name not in matrices]
    group: dict[str, Any] = {"params": [p for name, p in named if name in matrices]}
    group["lr_factor"] = settings.muon_lr / settings.lr
    muon = torch.optim.Muon(
        [group], lr=settings.muon_lr, weight_decay=settings.weight_decay, momentum=0.9
    )
    return [optim.adamw(rest, lr=settings.lr, weight_decay=settings.weight_decay), muon]


def _train(
    learner: Learner | Student, sampler: Sampler, optimizers: list[Optimizer], *, start: int
) -> Iterator[dict[str, float]]:
    """Yields the log, line by line."""
    settings, started = sampler.settings, time.monotonic()
    recent: list[Tensor] = []
    for step in range(start, settings.steps):
        warm = min(1.0, (step + 1) / settings.warmup)
        lr = settings.lr * warm * optim.cosine(step, epochs=settings.steps)
        for optimizer in optimizers:
            optim.set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
        terms = learner.train()(learner.draw(sampler))
        learner.loss(terms, settings).backward()
        for optimizer in optimizers:
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


@torch.no_grad()
def held_out_scores(learner: Learner | Student, sampler: Sampler) -> dict[str, float]:
    """Shares of right first answers among identities that were never trained on.

    Returns:
        "sentence": the sentence of the right identity for an image, by the projected feature;
        "projected", "pooled": a colored image of the right identity for a gray one.
    """
    learner.eval()
    encoder = learner.encoder
    rows = np.flatnonzero(sampler.identity > sampler.identity[-1] - sampler.settings.held_out)
    sample = sampler.sample(rows, sampler.has_color[rows], captioned=np.arange(len(rows)))
    projected = F.normalize(encoder.project(sample.images, Modality.VISIBLE), dim=1)
    pooled = encoder.embed(sample.images, Modality.VISIBLE)
    text = F.normalize(learner.text.encode_text(sample.tokens), dim=1)
    colored = torch.from_numpy(sampler.has_color[rows])

    def first_answers(queries: Tensor, answers: Tensor, asked: Tensor, given: Tensor) -> float:
        best = (queries[asked] @ answers[given].T).argmax(dim=1)
        known = torch.isin(sample.identities[asked], sample.identities[given])
        right = sample.identities[asked] == sample.identities[given][best]
        return round(float(right[known].float().mean()), 4)

    everyone = torch.ones_like(colored)
    return {
        "sentence": first_answers(projected, text, everyone, everyone),
        "projected": first_answers(projected, projected, ~colored, colored),
        "pooled": first_answers(pooled, pooled, ~colored, colored),
    }


def exported(encoder: ImageEncoder, clip: Backbone) -> dict[str, Tensor]:
    """State dict of the open_clip model with the encoder's weights, in float16."""
    assert encoder.attnpool is not None
    head, stem, trunk = (
        part.state_dict() for part in (encoder.attnpool, encoder.visible_stem, encoder.trunk)
    )
    if "weight" in head:  # a transformer
        visual = stem | {"proj": head["weight"]}
        for name, value in trunk.items():
            name = name.replace("norm.", "ln_post.") if name.startswith("norm.") else name
            visual[name.replace("blocks.", "transformer.resblocks.", 1)] = value
    else:
        positions = head["positional_embedding"]
        grid = positions[1:].unflatten(0, (HEIGHT // 16, WIDTH // 16)).repeat_interleave(2, dim=1)
        head["positional_embedding"] = torch.cat([positions[:1], grid.flatten(0, 1)])
        visual = stem | trunk | {f"attnpool.{name}": value for name, value in head.items()}
    state = clip.model.state_dict() | {f"visual.{name}": value for name, value in visual.items()}
    return {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    }


def main() -> None:
    """python -m reid_core.pretraining.train OUT [--name N] [--seed N] [--steps N] [--threads N]."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out")
    parser.add_argument("--name", choices=SETTINGS, default=SMALL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(chosen.threads)
    settings = SETTINGS[chosen.name]
    if chosen.steps is not None:
        settings = replace(settings, steps=chosen.steps)
    pretrain(chosen.out, seed=chosen.seed, name=chosen.name, settings=settings)


if __name__ == "__main__":
    main()
