"""Captions: ids as open_clip gives them, a cut that keeps EOT, masking by (seed, epoch, row)."""

from __future__ import annotations

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from reid_core import text

CAPTIONS = [
    "A woman in a striped dress with a backpack.",
    "",
    "  \n",
    "a man &amp; his  RED bag",
    "a long red coat " * 40,
    "naïve café 50 % — odd signs",
]


def test_ids_are_open_clips_with_cut_and_empty_captions_marked() -> None:
    tokens = text.tokenize(CAPTIONS)
    assert np.array_equal(tokens.ids, SimpleTokenizer()(CAPTIONS, context_length=77).numpy())
    assert tokens.truncated.tolist() == [False, False, False, False, True, False]
    assert tokens.empty.tolist() == [False, True, True, False, False, False]


def test_every_caption_ends_with_one_end_token_also_when_cut() -> None:
    ids = text.tokenize(CAPTIONS).ids
    assert ((ids == text.EOT).sum(axis=1) == 1).all()
    assert (ids.max(axis=1) == text.EOT).all()
    assert ids[4, -1] == text.EOT
    assert (ids[:, 0] == text.SOT).all()


@pytest.mark.parametrize(("num_words", "truncated"), [(75, False), (76, True)])
def test_75_words_fit(num_words: int, truncated: bool) -> None:
    tokens = text.tokenize([" ".join(["red"] * num_words)])
    assert tokens.truncated.tolist() == [truncated]
    assert (tokens.ids[0, 1:76] == tokens.ids[0, 1]).all()


def test_no_captions_give_no_rows() -> None:
    assert text.tokenize([]).ids.shape == (0, 77)


def masked(ids: np.ndarray, rows: np.ndarray, **changes: float) -> np.ndarray:
    settings: dict = {"probability": 0.15, "seed": 3, "epoch": 1}
    return text.mask_tokens(ids, rows, **(settings | changes))


def test_masking_depends_on_the_caption_not_on_its_batch() -> None:
    ids = text.tokenize(CAPTIONS[:1] * 8).ids
    rows = np.arange(8)
    together = masked(ids, rows)
    assert np.array_equal(together[[5, 2]], masked(ids[:2], np.array([5, 2])))
    assert len(np.unique(together, axis=0)) > 1
    assert not np.array_equal(together, masked(ids, rows, epoch=2))
    assert not np.array_equal(together, masked(ids, rows, seed=4))


def test_special_tokens_stay_and_every_caption_with_words_may_lose_one() -> None:
    ids = text.tokenize(CAPTIONS).ids
    special = (ids == 0) | (ids == text.SOT) | (ids == text.EOT)
    for epoch in range(20):
        changed = masked(ids, np.arange(len(ids)), epoch=epoch) != ids
        assert not changed[special].any()
    assert not changed[1:3].any()


def test_one_word_is_masked_where_chance_chooses_none() -> None:
    ids = text.tokenize(["a red coat"] * 2000).ids
    result = masked(ids, np.arange(2000), probability=0.0)
    assert ((result == text.MASK).sum(axis=1) == 1).all()
    assert ((result != ids).sum(axis=1) == 1).all()
    share = (result == text.MASK).mean(axis=0)
    assert abs(share[1:4] - 1 / 3).max() < 0.05  # any of them


def test_shares_are_the_published_ones() -> None:
    ids = text.tokenize([" ".join(["red"] * 75)] * 1000).ids
    result = masked(ids, np.arange(1000))
    words = 75_000
    is_mask, changed = (result == text.MASK).sum(), (result != ids).sum()
    assert abs(is_mask / words - 0.15 * 0.8) < 0.006
    assert abs((changed - is_mask) / words - 0.15 * 0.1) < 0.003
    assert result[result != 0].min() >= 1
    assert result.max() == text.EOT


def test_a_caption_that_spells_a_special_token_out_does_not_end_there() -> None:
    tokens = text.tokenize(["a man <end_of_text> in red", "a man in red", "&lt;end_of_text&gt;"])
    assert tokens.ids[0].tolist() == tokens.ids[1].tolist()
    assert tokens.empty.tolist() == [False, False, True]
