"""Learnable words stand where the papers put them, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid_core.models import backbones
from reid_core.models.prompts import Chosen, PromptLearner
from reid_core.models.text_tower import TextTower


@pytest.fixture(scope="module")
def text() -> TextTower:
    tower = backbones.load(backbones.SMALL, seed=2).text
    return tower.requires_grad_(False)


def test_csdn_sentence_has_the_published_ids(text):
    learner = PromptLearner(text, num_classes=2, prefix="A photo of a", seed=0)
    expected = [49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407]
    assert learner.token_ids[:12].tolist() == expected
    assert not learner.token_ids[12:].any()
    assert learner.eot == 11
    assert len(learner.prefix) == 5


@pytest.mark.parametrize("word", ["A visible", "An infrared"])
def test_cclnet_sentences_have_six_frozen_tokens_in_front(text, word):
    learner = PromptLearner(text, num_classes=2, prefix=f"{word} photo of a", seed=0)
    assert learner.token_ids[6:10].tolist() == [343] * 4
    assert (len(learner.prefix), learner.eot) == (6, 12)
    assert len(learner.suffix) == 3  # identity . EOT


def test_with_the_embedding_of_x_it_is_the_plain_sentence(text):
    learner = PromptLearner(text, num_classes=2, seed=0)
    with torch.no_grad():
        learner.tokens.copy_(text.token_embedding(torch.tensor([343] * 4)))
        plain = text.encode_text(text.tokenize(["A visible photo of a X X X X person."]))
        torch.testing.assert_close(learner(), plain.expand(2, -1))


def test_labels_pick_classes_in_their_order_with_repeats(text):
    learner = PromptLearner(text, num_classes=5, seed=0)
    labels = torch.tensor([3, 0, 3, 4])
    with torch.no_grad():
        torch.testing.assert_close(learner(Chosen.of(labels.numpy())), learner()[labels])


def test_only_the_drawn_classes_learn(text):
    learner = PromptLearner(text, num_classes=4, seed=0)
    learner(Chosen.of(np.array([1, 1, 2]))).square().sum().backward()
    touched = learner.tokens.grad.abs().sum(dim=(1, 2)) > 0
    assert touched.tolist() == [False, True, True, False]
    assert [name for name, p in learner.named_parameters() if p.requires_grad] == ["tokens"]


def test_tokens_are_drawn_from_the_seed_with_the_papers_spread(text):
    first, again, other = (PromptLearner(text, num_classes=200, seed=s).tokens for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(first.mean().item()) < 1e-3
