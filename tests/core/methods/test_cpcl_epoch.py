"""An epoch of CPCL, from records to losses, what those may not see, and the encoder after it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reid_core import optim, text
from reid_core.datasets import LAYOUTS
from reid_core.method import BetweenEpochs, Opening
from reid_core.methods.cpcl import between_epochs as cpcl
from reid_core.methods.cpcl import opening
from reid_core.methods.cpcl.between_epochs import TEXT, VISIBLE
from reid_core.methods.cpcl.settings import Config
from reid_core.models import backbones
from reid_core.stage import Epoch
from reid_core.types import Batch, Dataset
from tests.core.rows import unit


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
    chosen = Config.model_validate(
        {
            "clustering": {"k1": 4, "k2": 1, "min_samples": 2},
            "train": {**train, "text_mask": text_mask},
        }
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
    stage.begin_epoch(0, epoch.for_workers({}))
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
        terms = stage.terms(stage.module, stage.on_host({VISIBLE: batch}), gather)
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
        Config(), "train", Opening(small, height=64, width=32, handed={}, seed=0)
    )
    epoch = Epoch(
        labels={VISIBLE: np.array([0, 3, 1, 2]), TEXT: np.array([2, 2, 1, 0])},
        prototypes={VISIBLE: unit(4, seed=4), TEXT: unit(3, seed=3)},
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
        Config(), "train", Opening(small, height=64, width=32, handed={}, seed=0)
    )
    with torch.no_grad():
        next(stage.module.parameters()).add_(1)
    again = opening.load_encoder(Config(), small, 64, 32, stage.module.state_dict())
    fresh = opening.load_encoder(Config(), small, 64, 32, None)
    images = torch.zeros(2, 3, 64, 32, dtype=torch.uint8) + 99
    stage.module.eval()
    with torch.no_grad():
        wanted = stage.encoder.embed(images, VISIBLE)
        assert torch.equal(again.embed(images, VISIBLE), wanted)
        assert not torch.equal(fresh.embed(images, VISIBLE), wanted)
    assert (stage.epochs, stage.evaluate_every) == (60, 1)
    assert stage.hand_on() == {}
