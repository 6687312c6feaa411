"""CCLNet from end to end in one file, one process, without Ray, out of public pieces.

    python examples/cclnet.py [TREE] [--tiny]

TREE is a data set in SYSU-MM01's layout; without it, the demo's generated identities are drawn. The
values are those of tune_configs/demo.yaml; the product's own run differs by how batches travel,
by what is logged, and by nothing that is learned.

Chen et al., "Unveiling the Power of CLIP in Unsupervised Visible-Infrared Person
Re-Identification", ACM MM 2023.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from reid_core import centroids, cluster, hungarian_pairs, losses, optim, protocols, sampling, swap
from reid_core.augmentation import Augmentation
from reid_core.datasets import synthetic, sysu
from reid_core.memory import ClusterMemory, swap_rows
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.models.prompts import Chosen, PromptLearner
from reid_core.transforms import TrainTransform, decode
from reid_core.types import Modality, Split

TINY = "--tiny" in sys.argv
SIZE = {"height": 96, "width": 48}
P, K, STEPS = 16, 4, 4 if TINY else 30  # clusters a batch, images of each, batches an epoch
KEEP, TEMPERATURE, MOMENTUM = 0.5, 0.1, 0.2
MODALITIES = V, R = Modality.VISIBLE, Modality.INFRARED
SEED = 0
visible = Augmentation(grayscale=0.5, pad=3)
TRANSFORMS = {V: TrainTransform(visible), R: TrainTransform(replace(visible, grayscale=0.0))}


def images_of(root: Path, split: Split) -> dict[Modality, np.ndarray]:
    """Every image of a split, decoded once: per modality (n, 3, H, W) uint8."""
    files = {m: [split.samples[row].image for row in split.rows(m)] for m in MODALITIES}
    return {
        m: np.stack([decode((root / f).read_bytes(), **SIZE) for f in files[m]]) for m in MODALITIES
    }


@torch.no_grad()
def embedded(head, images: dict[Modality, np.ndarray]) -> dict[Modality, torch.Tensor]:
    """head(images, modality) of everything, in row order."""
    rows = {m: torch.from_numpy(x).split(256) for m, x in images.items()}
    return {m: torch.cat([head(part, m) for part in rows[m]]) for m in MODALITIES}


def image_stage(start: backbones.Backbone, images, *, epochs: int, guidance=None):
    """Stage 0, or with `guidance` (labels, anchors) stage 2: cluster, match, swap, contrast."""
    encoder = ImageEncoder(start, **SIZE)
    encoder.attnpool.requires_grad_(guidance is not None)
    optimizer = optim.adamw(encoder.named_parameters(), lr=1e-3, weight_decay=5e-4)
    for epoch in range(epochs):
        features = embedded(encoder.eval().embed, images)
        labels = {m: cluster(features[m], k1=12, k2=3, min_samples=6) for m in MODALITIES}
        banks = [F.normalize(centroids(features[m], labels[m])) for m in MODALITIES]
        pairs = hungarian_pairs(*banks)
        memories = [
            ClusterMemory(bank, momentum=MOMENTUM, temperature=TEMPERATURE)
            for bank in swap(*banks, pairs, keep=KEEP)
        ]
        plan = {
            m: sampling.pk_plan(
                labels[m], num_clusters=P, num_instances=K, num_batches=STEPS, seed=i, epoch=epoch
            )
            for i, m in enumerate(MODALITIES)
        }
        optim.set_lr(optimizer, 1e-3 * optim.cosine(epoch, epochs=epochs))
        encoder.train()
        for step in range(STEPS):
            rows = {m: plan[m][step] for m in MODALITIES}
            classes = {m: torch.from_numpy(labels[m][rows[m]]) for m in MODALITIES}
            seeds = sampling.augmentation_seeds((2, P * K), seed=SEED, epoch=epoch * STEPS + step)
            batch = [
                torch.from_numpy(TRANSFORMS[m](images[m][rows[m]], seeds[i]))
                for i, m in enumerate(MODALITIES)
            ]
            output = encoder(*batch)
            neck = [F.normalize(x) for x in output.neck.split(P * K)]
            loss = sum(
                losses.cluster_contrast(x, classes[m], memory.bank, temperature=TEMPERATURE)
                for x, m, memory in zip(neck, MODALITIES, memories, strict=True)
            )
            if guidance is not None:
                first_labels, anchors = guidance
                for x, m in zip(output.projected.split(P * K), MODALITIES, strict=True):
                    known = torch.from_numpy(first_labels[m][rows[m]])
                    loss = loss + losses.image_to_text(x, known, anchors[m], smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for x, m, memory in zip(neck, MODALITIES, memories, strict=True):
                memory.update(x.detach(), classes[m])
            memories[0].bank, memories[1].bank = swap_rows(
                memories[0].bank, memories[1].bank, pairs, *classes.values(), keep=KEEP
            )
        print(f"  epoch {epoch}: loss {loss:.3f}, {[len(b) for b in banks]} clusters", flush=True)
    return encoder.eval(), labels


def prompt_stage(
    start: backbones.Backbone, images, labels, *, epochs: int
) -> dict[Modality, torch.Tensor]:
    """Stage 1: four words for every cluster of stage 0, against CLIP's frozen image features."""
    features = embedded(ImageEncoder(start, **SIZE).eval().project, images)
    clustered = {m: np.flatnonzero(labels[m] >= 0) for m in MODALITIES}
    start.text.requires_grad_(False)
    prefixes = {V: "A visible photo of a", R: "An infrared photo of a"}
    classes = {m: int(labels[m].max()) + 1 for m in MODALITIES}
    learners = torch.nn.ModuleDict(
        {
            str(m): PromptLearner(start.text, num_classes=classes[m], prefix=prefixes[m], seed=i)
            for i, m in enumerate(MODALITIES)
        }
    )
    words = learners.named_parameters()
    optimizer = optim.adam_per_tensor(words, lr=3.5e-4, weight_decay=1e-4, bias_lr_factor=1)
    rate = {"lr": 3.5e-4, "min_lr": 1e-6, "warmup_lr": 1e-5, "warmup_epochs": 5}
    for epoch in range(epochs):
        sizes = [len(clustered[m]) for m in MODALITIES]
        plan = sampling.prompt_plan(*sizes, batch_size=128, seed=SEED, epoch=epoch)
        optim.set_lr(optimizer, optim.warmup_cosine(epoch + 1, epochs=epochs, **rate))
        for positions in zip(*plan, strict=True):
            loss = torch.zeros(())
            for m, places in zip(MODALITIES, positions, strict=True):
                rows = clustered[m][places]
                image, y = features[m][rows], torch.from_numpy(labels[m][rows])
                text = learners[str(m)](Chosen.of(labels[m][rows]))
                loss = loss + losses.supervised_contrast(image, text, y, y)
                loss = loss + losses.supervised_contrast(text, image, y, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"  prompts: loss {loss:.3f}")
    with torch.no_grad():
        return {m: learners[str(m)](None) for m in MODALITIES}


def score(encoder, images, split: Split) -> str:
    """All-search, single-shot, mean of ten galleries."""
    vectors = np.empty((len(split), encoder.feature_dim), dtype=np.float32)
    for m, x in embedded(encoder.eval().embed, images).items():
        vectors[split.rows(m)] = x.numpy()
    trials = [t for t in protocols.sysu(split) if t.name.startswith("sysu/all_single")]
    results = [protocols.score(vectors, split.pids, trial) for trial in trials]
    rank1, mean_ap = 100 * np.mean([(r.cmc[0], r.mAP) for r in results], axis=0)
    return f"Rank-1 {rank1:.1f}, mAP {mean_ap:.1f}"


def main() -> None:
    """Read or draw a world, train the three stages, measure before and after."""
    torch.manual_seed(SEED)
    named = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("--")]
    root = named[0] if named else Path(tempfile.mkdtemp())
    if not named:
        synthetic.write(root, num_identities=80 if TINY else 500, seed=0, test_share=0.5, workers=2)
    data = sysu.read(root)
    trained = Split(data.train.samples + data.val.samples)
    images, tested = images_of(root, trained), images_of(root, data.test)
    load = lambda: backbones.load(backbones.SMALL, "bundled")  # noqa: E731
    print("start:  ", score(ImageEncoder(load(), **SIZE), tested, data.test))
    encoder, labels = image_stage(load(), images, epochs=1 if TINY else 3)
    print("stage 0:", score(encoder, tested, data.test))
    anchors = prompt_stage(load(), images, labels, epochs=1 if TINY else 20)
    encoder, _ = image_stage(load(), images, epochs=2 if TINY else 6, guidance=(labels, anchors))
    print("stage 2:", score(encoder, tested, data.test))


if __name__ == "__main__":
    main()
