"""CPCL within an epoch: losses, memory, workers, and what the losses may not see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core import losses, optim, text
from reid_core.datasets import LAYOUTS
from reid_core.memory import ClusterMemory
from reid_core.method import BetweenEpochs, Opening
from reid_core.methods.cpcl import between_epochs as cpcl
from reid_core.methods.cpcl import opening, stages
from reid_core.methods.cpcl.between_epochs import TEXT, VISIBLE
from reid_core.methods.cpcl.settings import Config
from reid_core.methods.cpcl.stages import Pairs, Prototypes
from reid_core.models import backbones
from reid_core.stage import Epoch
from reid_core.types import Batch, Dataset

CLUSTERS = {VISIBLE: 4, TEXT: 3}


def config(**changes: object) -> Config:
    return Config.model_validate(changes)


def unit(num: int, *, seed: int, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, width, generator=generator), dim=1)


def pairs(num: int = 6) -> Pairs:
    """Features that ask for gradients; an outlier on either side, two captions of one image."""
    return Pairs(
        {VISIBLE: unit(num, seed=0).requires_grad_(), TEXT: unit(num, seed=1).requires_grad_()},
        {
            VISIBLE: torch.tensor([0, 0, -1, 3, 0, -1])[:num],
            TEXT: torch.tensor([2, -1, 1, 2, 0, -1])[:num],
        },
        torch.tensor([5, 5, 7, 8, 9, 1])[:num],
    )


def prototypes(chosen: Config) -> Prototypes:
    epoch = Epoch(
        labels={},
        prototypes={m: unit(n, seed=2 + n).numpy() for m, n in CLUSTERS.items()},
        pairs=np.array([[0, 2], [0, 2], [0, 2], [0, 0], [3, 2], [1, 1]]),
    )
    return stages.open_prototypes(chosen, epoch, torch.device("cpu"))


def total(chosen: Config, own: Pairs, everyone: Pairs, *, memory: bool = True) -> Tensor:
    terms = stages.pair_terms(chosen, own, everyone, prototypes(chosen) if memory else None)
    return torch.stack([term.weight * term.mean for term in terms.values()]).sum()


# Hybrid cross-modal matching ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("pair", {(0, 1)}),
        ("image", {(0, 1), (0, 4), (1, 4)}),
        ("text", {(0, 1), (0, 3)}),
        ("union", {(0, 1), (0, 4), (1, 4), (0, 3)}),
        ("intersection", {(0, 1)}),
    ],
)
def test_positives_are_pairs_of_one_image_and_of_equal_clusters_never_outliers(
    rule: str, expected: set[tuple[int, int]]
) -> None:
    result = stages.positives(rule, pairs())
    assert torch.equal(result, result.T)
    assert result.diagonal().all()
    assert {(i, j) for i, j in result.nonzero().tolist() if i < j} == expected


def test_the_whole_loss_is_the_sum_of_its_published_parts() -> None:
    chosen = config(lambda1=0.5, lambda2=2.0)
    own, memory = pairs(), prototypes(chosen)
    v, t = own.features[VISIBLE], own.features[TEXT]
    yv, yt = own.labels[VISIBLE], own.labels[TEXT]
    bank = {m: memory.memories[m].bank for m in CLUSTERS}
    instance = losses.distribution_matching(v, t, stages.positives("image", own), temperature=0.02)

    def contrast(x: Tensor, y: Tensor, against: Tensor) -> Tensor:
        return losses.cluster_contrast(x, y, against, temperature=0.05)

    within = contrast(v, yv, bank[VISIBLE]) + contrast(t, yt, bank[TEXT])
    across = contrast(v, yt, bank[TEXT]) + contrast(t, yv, bank[VISIBLE])
    expected = instance + 0.5 * within / 2 + 2.0 * across / 2
    assert total(chosen, own, own).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"lambda1": 0, "lambda2": 0, "matching": {"instance": "itc"}}, {"instance"}),
        ({"lambda2": 0}, {"instance", "visible_prototypes", "text_prototypes"}),
        ({"lambda1": 0}, {"instance", "visible_to_text", "text_to_visible"}),
    ],
)
def test_each_ablation_has_its_terms(changes: dict, names: set[str]) -> None:
    chosen = config(**changes)
    terms = stages.pair_terms(chosen, pairs(), pairs(), prototypes(chosen))
    assert terms.keys() == names


def test_the_baseline_is_clips_loss() -> None:
    chosen = config(matching={"instance": "itc"})
    share = pairs()
    logits = share.features[VISIBLE] @ share.features[TEXT].T / 0.02
    own = torch.arange(6)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert stages.instance_loss(chosen, share).item() == pytest.approx(expected.item(), rel=1e-5)


def test_soft_targets_are_the_clusters_that_occur_together() -> None:
    chosen = config(matching={"targets": "soft"})
    memory = prototypes(chosen)
    to_text = stages.cross_targets(chosen, pairs(), memory, own=VISIBLE, other=TEXT)
    assert to_text.tolist() == [[1, 0, 3], [1, 0, 3], [0, 0, 0], [0, 0, 1], [1, 0, 3], [0, 0, 0]]
    to_image = stages.cross_targets(chosen, pairs(), memory, own=TEXT, other=VISIBLE)
    assert to_image.tolist()[:3] == [[3, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("targets", ["hard", "soft", "divergence"])
@pytest.mark.parametrize("hard_negatives", [None, 1])
@pytest.mark.parametrize("instance", ["sdm", "itc", "multi_positive"])
def test_every_combination_is_finite_with_gradients_for_features_alone(
    targets: str, hard_negatives: int | None, instance: str
) -> None:
    chosen = config(
        matching={"targets": targets, "hard_negatives": hard_negatives, "instance": instance}
    )
    own, memory = pairs(), prototypes(chosen)
    terms = stages.pair_terms(chosen, own, own, memory)
    torch.stack([term.weight * term.mean for term in terms.values()]).sum().backward()
    for x in own.features.values():
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().sum() > 0
    assert not any(memory.memories[m].bank.requires_grad for m in CLUSTERS)


def test_outliers_alone_leave_the_instance_loss() -> None:
    nothing = torch.full((6,), -1)
    own = replace(pairs(), labels={VISIBLE: nothing, TEXT: nothing})
    chosen = config()
    terms = stages.pair_terms(chosen, own, own, prototypes(chosen))
    assert [term.mean.item() for name, term in terms.items() if name != "instance"] == [0] * 4
    assert [int(term.count) for term in terms.values()] == [6, 0, 0, 0, 0]
    assert total(chosen, own, own) == total(chosen, own, own, memory=False)


# Any number of workers ---------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("instance", ["sdm", "itc"])
def test_workers_together_take_the_step_of_one(world: int, instance: str) -> None:
    """Means weighted by counts, and gradients through `gather`, agree with a single worker's."""
    chosen = config(matching={"instance": instance})
    alone = pairs()
    total(chosen, alone, alone).backward()
    whole = pairs()
    size = 6 // world
    by_name: dict[str, list] = {}
    for rank in range(world):
        part = slice(rank * size, (rank + 1) * size)
        own = Pairs(
            {m: x[part] for m, x in whole.features.items()},
            {m: y[part] for m, y in whole.labels.items()},
            whole.rows[part],
        )
        for name, term in stages.pair_terms(chosen, own, whole, prototypes(chosen)).items():
            by_name.setdefault(name, []).append(term)
    combined = torch.zeros(())
    for terms in by_name.values():
        counts = torch.tensor([int(term.count) for term in terms])
        mean = torch.stack([term.mean for term in terms]) @ counts.float() / counts.sum()
        combined = combined + terms[0].weight * mean
    combined.backward()
    assert combined.item() == pytest.approx(total(chosen, alone, alone).item(), rel=1e-5)
    for m in CLUSTERS:
        torch.testing.assert_close(whole.features[m].grad, alone.features[m].grad)


# Prototypical multi-modal memory -----------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, "bank"), (0.0, "row")])
def test_momentum_one_keeps_and_zero_copies(momentum: float, expected: str) -> None:
    chosen = config(memory={"momentum": momentum})
    own, memories = pairs(), prototypes(chosen).memories
    before = {m: memories[m].bank.clone() for m in CLUSTERS}
    stages.update(chosen, memories, own)
    for m, last in ((VISIBLE, 4), (TEXT, 4)):  # row 4 is the last of cluster 0 in both
        wanted = before[m][0] if expected == "bank" else own.features[m][last].detach()
        torch.testing.assert_close(memories[m].bank[0], wanted)
        torch.testing.assert_close(memories[m].bank.norm(dim=1), torch.ones(CLUSTERS[m]))
    assert torch.equal(memories[VISIBLE].bank[1:3], before[VISIBLE][1:3])  # no row of theirs


def test_each_memory_is_moved_by_its_own_modality_alone() -> None:
    chosen, own = config(), pairs()
    without = replace(own, labels={**own.labels, TEXT: torch.full((6,), -1)})
    both, images = prototypes(chosen).memories, prototypes(chosen).memories
    before = images[TEXT].bank.clone()
    stages.update(chosen, both, own)
    stages.update(chosen, images, without)
    assert torch.equal(images[TEXT].bank, before)
    assert torch.equal(images[VISIBLE].bank, both[VISIBLE].bank)


def test_the_hardest_row_alone_moves_its_prototype() -> None:
    bank = torch.eye(2)
    x = torch.tensor([[0.8, 0.6], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 0, -1])
    hardest = stages.hardest_only(x, labels, bank)
    assert hardest.tolist() == [-1, 0, -1, 1, -1, -1]  # rows 1 and 4 tie: the first
    memory = ClusterMemory(bank, momentum=0.0, temperature=1.0)
    chosen = config(memory={"momentum": 0.0, "update": "hardest"})
    rows = Pairs({VISIBLE: x}, {VISIBLE: labels}, torch.arange(6))
    stages.update(chosen, {VISIBLE: memory}, rows)
    torch.testing.assert_close(memory.bank, x[[1, 3]])


def test_hardest_of_nothing_is_nothing() -> None:
    nothing = torch.full((3,), -1)
    assert torch.equal(stages.hardest_only(unit(3, seed=0), nothing, torch.eye(8)), nothing)
    empty = torch.empty(0, 8)  # an epoch without prototype losses may have no cluster
    assert torch.equal(stages.hardest_only(unit(3, seed=0), nothing, empty), nothing)


# The stage, from records to losses ---------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> backbones.Backbone:
    return backbones.load(backbones.SMALL, seed=1)


def write_json(root: Path, ids: list[int]) -> Path:
    """CUHK-PEDES with six images of two captions; `ids` one per image."""
    colors = ["red", "blue", "green", "black", "white", "pink"]
    images = [
        {
            "split": "train",
            "captions": [f"a person in a {c} coat.", f"{c} coat and a bag, walking."],
            "file_path": f"cam_a/{i}.png",
            "processed_tokens": [[], []],
            "id": identity,
        }
        for i, (c, identity) in enumerate(zip(colors, ids, strict=True))
    ]
    others = [
        {**images[0], "split": split, "id": 90 + i} for i, split in enumerate(("val", "test"))
    ]
    (root / "CUHK-PEDES" / "imgs" / "cam_a").mkdir(parents=True)
    (root / "CUHK-PEDES" / "reid_raw.json").write_text(json.dumps(images + others))
    return root


def gather(x: Tensor) -> Tensor:
    """A single worker's."""
    return x


def train_one_epoch(
    dataset: Dataset, clip: backbones.Backbone, *, text_mask: float = 0
) -> list[float]:
    """Every loss of an epoch of two steps, from the records of a data set."""
    split = dataset.train
    images = [split.samples[i] for i in split.rows(VISIBLE)]
    captions = [split.samples[i] for i in split.rows(TEXT)]
    row_of = {sample.image: row for row, sample in enumerate(images)}
    owners = np.array([row_of[sample.image] for sample in captions])
    tokens = torch.from_numpy(text.tokenize([sample.caption for sample in captions]).ids)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(images), 3, 64, 32), generator=generator).byte()
    train = {"batch_size": 6, "lr": 1e-3, "epochs": 2, "warmup_epochs": 0}
    chosen = config(
        clustering={"k1": 4, "k2": 1, "min_samples": 2}, train={**train, "text_mask": text_mask}
    )
    stage = opening.open_stage(
        chosen, "train", Opening(clip, height=64, width=32, handed={}, seed=3)
    )
    stage.encoder.eval()
    with torch.no_grad():
        features = {
            VISIBLE: stage.encoder.embed(pixels, VISIBLE).numpy(),
            TEXT: stage.encoder.embed(tokens, TEXT).numpy(),
        }
    labels = {
        VISIBLE: cpcl.cluster(
            chosen, VISIBLE, BetweenEpochs("train", 0, 0, features=features, owners=owners)
        ),
        TEXT: cpcl.cluster(chosen, TEXT, BetweenEpochs("train", 0, 0, features=features)),
    }
    epoch = cpcl.begin_epoch(
        chosen, BetweenEpochs("train", 0, 3, features=features, owners=owners), labels
    )
    stage.begin_epoch(0, epoch.for_workers())
    optimizer = stage.optimizer()
    optim.set_lr(optimizer, stage.learning_rate(0))
    stage.module.train()
    result = []
    assert epoch.captions is not None
    for rows, chosen_captions in zip(epoch.rows[VISIBLE], epoch.captions, strict=True):
        batch = Batch(
            images=pixels[rows],
            rows=torch.from_numpy(rows),
            labels=torch.from_numpy(epoch.labels[VISIBLE][rows]),
            captions=torch.from_numpy(chosen_captions),
            tokens=tokens[chosen_captions],
        )
        terms = stage.terms(stage.module, stage.prepare({VISIBLE: batch}), gather)
        optimizer.zero_grad()
        torch.stack([term.weight * term.mean for term in terms.values()]).sum().backward()
        optimizer.step()
        stage.update(gather)
        result += [float(term.mean.detach()) for term in terms.values()]
    return result


def test_ids_in_the_training_list_do_not_reach_any_loss(tmp_path: Path, small) -> None:
    ids = [1, 1, 2, 2, 3, 3]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = LAYOUTS["cuhk"].read(write_json(tmp_path / "a", ids))
    after = LAYOUTS["cuhk"].read(write_json(tmp_path / "b", [3, 2, 1, 3, 2, 1]))
    assert not np.array_equal(before.train.pids, after.train.pids)
    first = train_one_epoch(before, small)
    assert len(first) == 10
    assert np.isfinite(first).all()
    assert first == train_one_epoch(after, small)


def test_the_state_says_which_clusters_occur_in_one_pair(small) -> None:
    together = np.array([[0, 2], [0, 2], [3, 2], [1, 1]])
    stage = opening.open_stage(
        config(), "train", Opening(small, height=64, width=32, handed={}, seed=0)
    )
    epoch = Epoch(
        labels={VISIBLE: np.array([0, 3, 1, 2]), TEXT: np.array([2, 2, 1, 0])},
        prototypes={m: unit(n, seed=n).numpy() for m, n in CLUSTERS.items()},
        pairs=together,
    )
    stage.begin_epoch(0, epoch)
    state = stage.state_dict()
    assert state["pairs"].tolist() == together.tolist()
    stage.load_state_dict({key: x for key, x in state.items() if key != "pairs"})  # of before


def test_masked_words_change_the_step(tmp_path: Path, small) -> None:
    dataset = LAYOUTS["cuhk"].read(write_json(tmp_path, [1] * 6))
    masked = train_one_epoch(dataset, small, text_mask=0.3)
    assert masked != train_one_epoch(dataset, small)
    assert masked == train_one_epoch(dataset, small, text_mask=0.3)


def test_the_trained_encoder_comes_back_from_its_state(small) -> None:
    stage = opening.open_stage(
        config(), "train", Opening(small, height=64, width=32, handed={}, seed=0)
    )
    with torch.no_grad():
        next(stage.module.parameters()).add_(1)
    again = opening.load_encoder(config(), small, 64, 32, stage.module.state_dict())
    fresh = opening.load_encoder(config(), small, 64, 32, None)
    images = torch.zeros(2, 3, 64, 32, dtype=torch.uint8) + 99
    stage.module.eval()
    with torch.no_grad():
        wanted = stage.encoder.embed(images, VISIBLE)
        assert torch.equal(again.embed(images, VISIBLE), wanted)
        assert not torch.equal(fresh.embed(images, VISIBLE), wanted)
    assert stage.clusters
    assert (stage.epochs, stage.evaluate_every) == (60, 1)
    assert stage.hand_on() == {}
