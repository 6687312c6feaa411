"""The small CLIP's pre-training: what it says about images, its loss, what it leaves behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from reid_core.datasets.synthetic import catalogue
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from reid_core.pretraining import batches, captioning, learners, train
from reid_core.types import Modality

SETTINGS = batches.Settings(
    num_images=48, held_out=4, steps=3, num_identities=4, warmup=1, log_every=2
)


@pytest.fixture(scope="module")
def book():
    return catalogue(48, seed=3, size=96)


def test_captions_lose_their_color_words_and_nothing_else():
    full = "a man with a white cap in a maroon and blue striped coat with red jeans."
    assert captioning.without_colors(full) == "a man with a cap in a striped coat with jeans."


def test_words_become_phrases_with_the_color_in_front():
    names = ("woman", "hair long", "hair black", "upper coat", "upper striped", "upper red")
    names += ("lower jeans", "lower blue", "bag none", "view back")
    said = captioning.phrases(names, colors=True)
    assert said == ["back view", "blue jeans", "red striped coat", "black long hair", "woman"]
    plain = captioning.phrases(names, colors=False)
    assert plain == ["back view", "jeans", "striped coat", "long hair", "woman"]


def test_prompts_have_the_papers_frame_and_gray_images_no_colors(book):
    sentences = captioning.Sentences(book, prompt_like=1.0)
    rows, spelled = np.arange(48), SimpleTokenizer()
    ids = sentences.draw(rows, np.zeros(48, dtype=bool), np.random.default_rng(0))
    for line in ids:
        end = int(line.argmax())
        text = spelled.decode(line[1:end].tolist())
        assert text.startswith(("a visible photo of a ", "an infrared photo of a "))
        assert text.rstrip().endswith("person .")
        assert not captioning.COLOR_WORDS & set(text.split())


def test_every_sentence_about_a_identity_is_right_for_them():
    identities = torch.tensor([0, 0, 1])
    similarity = torch.tensor([[9.0, 9.0, -9.0], [9.0, 9.0, -9.0], [-9.0, -9.0, 9.0]])
    # Two right answers out of two: the smallest loss is the entropy of choosing one.
    expected = 2 / 3 * np.log(2)
    loss = learners.identity_contrast(similarity, identities, identities)
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert learners.identity_contrast(similarity.flip(0), identities, identities).item() > 5
    # One sentence each: images 0 and 1 share it, so only the other direction has a choice.
    one_each = learners.identity_contrast(similarity[:, 1:], identities, identities[1:])
    assert one_each.item() == pytest.approx(np.log(2) / 2 / 2, abs=1e-4)


def test_images_of_one_identity_belong_together():
    identities = torch.tensor([0, 0, 1, 1])
    axes = torch.eye(2)
    assert learners.view_contrast(axes[identities], identities).item() < 1e-3
    assert learners.view_contrast(axes[[0, 1, 0, 1]], identities).item() > 9


def test_batches_hold_trained_identities_only_and_hide_unknown_colors(book):
    sampler = batches.Sampler(book, SETTINGS, seed=0)
    sample = sampler.draw()
    assert sample.images.shape == (8, 3, 96, 48)
    assert sorted(np.bincount(sample.identities.numpy())[sample.identities.unique()]) == [2] * 4
    assert sample.tokens.shape == (4, 77)
    assert sample.identities[sample.captioned].unique().equal(sample.identities.unique())
    assert int(sample.identities.max()) < 12 - SETTINGS.held_out
    gray = sampler.sample(np.arange(4), np.zeros(4, dtype=bool), captioned=np.arange(2))
    assert not gray.known[:, torch.from_numpy(sampler.is_color)].any()
    assert gray.known[:, torch.from_numpy(~sampler.is_color)].all()
    equal = (gray.images * torch.tensor([0.229, 0.224, 0.225])[:, None, None]) + torch.tensor(
        [0.485, 0.456, 0.406]
    )[:, None, None]
    assert (equal - equal[:, :1]).abs().max() < 1e-5


@pytest.mark.slow
def test_a_run_leaves_a_log_and_weights_that_reload_to_the_trained_encoder(tmp_path):
    path = train.pretrain(tmp_path, seed=1, settings=SETTINGS)
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 2, 3, 3]
    assert lines[0]["seed"] == 1
    assert {"sentence", "projected", "pooled"} <= lines[-1].keys()
    again = train.pretrain(tmp_path / "again", seed=1, settings=SETTINGS)
    first, second = (torch.load(p, weights_only=True) for p in (path, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {v.dtype for v in first.values() if v.is_floating_point()} == {torch.float16}


def test_stored_positions_resize_to_the_trained_ones():
    clip = backbones.load(backbones.SMALL, seed=0)
    trained = ImageEncoder(clip, height=96, width=48).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_(parameter.half())
        trained.attnpool.positional_embedding.copy_(torch.randn(19, 384).half())
    state = {name: v.float() for name, v in train.exported(trained, clip).items()}
    clip.model.load_state_dict(state)
    loaded = ImageEncoder(clip, height=96, width=48).eval()
    images = torch.randn(2, 3, 96, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.project(images, Modality.INFRARED), trained.project(images, Modality.VISIBLE)
        )
