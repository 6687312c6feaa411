"""Pairs whose answer is known: shares counted by hand, samples that keep classes together."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.pairs import Known, pairs_of, sampled, shares_of, weights_at
from reid_core.types import Modality


def known(*classes: int, each: int = 1) -> Known:
    labels = np.repeat(classes, each)
    return Known(np.arange(len(labels)), labels)


def test_shares_are_those_of_all_pairs_counted_one_by_one() -> None:
    rows = {Modality.VISIBLE: known(0, 0, 1, 2), Modality.INFRARED: known(0, 1, 1, 7, 7, 7)}
    ones = {m: np.ones((len(one.rows), 1)) for m, one in rows.items()}
    counted = {name: same.mean() for name, _, same in pairs_of(rows, ones)}
    assert shares_of(rows) == pytest.approx(counted)
    assert counted["visible visible"] == pytest.approx(1 / 6)
    assert counted["infrared visible"] == pytest.approx((2 * 1 + 1 * 2) / 24)


@pytest.mark.parametrize("others", [1000, 999])
def test_a_sample_has_the_same_classes_in_every_modality(others: int) -> None:
    """One class more or less must not part the modalities."""
    rows = {
        Modality.VISIBLE: known(*range(1000), each=20),
        Modality.INFRARED: known(*range(others), each=10),
    }
    chosen = sampled(rows, seed=0)
    first, second = (set(one.classes) for one in chosen.values())
    assert len(first) == 150
    assert first >= second >= first - {999}
    assert all(
        len(one.rows) == len(set(one.classes)) * each
        for one, each in zip(chosen.values(), (20, 10), strict=True)
    )


def test_classes_of_one_modality_alone_are_drawn_with_the_others() -> None:
    rows = {
        Modality.VISIBLE: known(*range(400), each=10),
        Modality.INFRARED: known(*range(200, 600), each=10),
    }
    chosen = sampled(rows, seed=1)
    drawn = {int(c) for one in chosen.values() for c in one.classes}
    for m, one in rows.items():
        assert set(chosen[m].classes) == drawn & set(one.classes)
        assert 2000 < len(chosen[m].rows) <= 3000


def test_few_rows_are_all_taken_and_two_classes_at_least() -> None:
    few = {Modality.VISIBLE: known(1, 2, 3)}
    assert sampled(few, seed=0) == few
    large = sampled({Modality.VISIBLE: known(1, 2, 3, each=2500)}, seed=0)[Modality.VISIBLE]
    assert len(set(large.classes)) == 2
    assert len(large.rows) == 3000, "some rows of classes that are larger than what is needed"
    assert len(set(large.rows)) == 3000


def test_no_modality_is_lost_to_the_large_classes_of_another() -> None:
    rows = {
        Modality.VISIBLE: known(900, 901, each=20_000),
        Modality.INFRARED: known(*range(50), each=2),
        Modality.TEXT: known(),
    }
    chosen = sampled(rows, seed=0)
    assert list(chosen) == [Modality.VISIBLE, Modality.INFRARED], "of a text nothing is known"
    assert len(set(chosen[Modality.VISIBLE].classes)) == 2
    rows[Modality.INFRARED] = known(3, 901, 7, each=2)
    assert 901 in sampled(rows, seed=0)[Modality.INFRARED].classes, "what both have seen"


def test_weights_give_equal_pairs_their_share() -> None:
    same = np.array([True, False, False, True, False])
    weights = weights_at(0.01, same)
    assert weights.sum() == pytest.approx(1)
    assert weights[same].sum() == pytest.approx(0.01)
