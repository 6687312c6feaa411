"""Who meets whom: hand-worked splits, and the draws of the published galleries."""

from __future__ import annotations

import random

import numpy as np
import pytest

from reid_core.datasets import LAYOUTS
from reid_core.protocols import Trial, chance_rank1, num_matched, score
from reid_core.types import Modality, Sample, Split

VISIBLE, INFRARED, TEXT = Modality.VISIBLE, Modality.INFRARED, Modality.TEXT


def split_of(*rows: tuple[Modality, int, int], images: int = 1) -> Split:
    """Rows (modality, pid, camera), each `images` times."""
    return Split(
        tuple(
            Sample(f"{modality}/{camera}/{pid}/{i}.jpg", modality, pid, camera)
            for modality, pid, camera in rows
            for i in range(images)
        )
    )


def trials(kind: str, split: Split) -> dict[str, list[Trial]]:
    result: dict[str, list[Trial]] = {}
    for trial in LAYOUTS[kind].protocol(split):
        result.setdefault(trial.name, []).append(trial)
    return result


SYSU = split_of(
    *((VISIBLE, pid, camera) for camera in (1, 2, 4, 5) for pid in (3, 8)),
    *((INFRARED, pid, camera) for camera in (3, 6) for pid in (3, 8)),
    images=12,
)


def test_sysu_has_two_searches_two_shots_and_ten_galleries_each() -> None:
    result = trials("sysu", SYSU)
    sizes = {
        name.split("/")[1]: {len(trial.gallery) for trial in group}
        for name, group in result.items()
    }
    assert sizes == {
        "all_single": {8},
        "all_multi": {80},
        "indoor_single": {4},
        "indoor_multi": {40},
    }
    assert all([t.number for t in group] == list(range(10)) for group in result.values())
    assert all(t.cmc == "identity" and len(t.query) == 48 for g in result.values() for t in g)


def test_sysu_single_shot_draws_as_published() -> None:
    """random.seed(trial), identities ascending, cameras in order, one of the sorted files."""
    group = trials("sysu", SYSU)["sysu/all_single/infrared_to_visible"]
    for trial in group:
        random.seed(trial.number)
        drawn = [
            random.choice([f"visible/{camera}/{pid}/{i}.jpg" for i in range(12)])
            for pid in (3, 8)
            for camera in (1, 2, 4, 5)
        ]
        assert [SYSU.samples[row].image for row in trial.gallery] == drawn


def test_sysu_multi_shot_draws_as_published() -> None:
    group = trials("sysu", SYSU)["sysu/indoor_multi/infrared_to_visible"]
    for trial in group:
        state = np.random.RandomState(trial.number)
        drawn = [
            f"visible/{camera}/{pid}/{i}.jpg"
            for pid in (3, 8)
            for camera in (1, 2)
            for i in state.choice(12, 10, replace=False)
        ]
        assert [SYSU.samples[row].image for row in trial.gallery] == drawn


def test_sysu_camera_3_does_not_see_camera_2_and_nothing_else_is_ignored() -> None:
    for group in trials("sysu", SYSU).values():
        for trial in group:
            asked, shown = SYSU.cameras[trial.query], SYSU.cameras[trial.gallery]
            np.testing.assert_array_equal(trial.ignored(), (asked[:, None] == 3) & (shown == 2))


def test_regdb_both_directions_use_everything_once() -> None:
    split = split_of((VISIBLE, 4, 1), (VISIBLE, 9, 1), (INFRARED, 9, 2), (INFRARED, 4, 2))
    result = trials("regdb", split)
    assert set(result) == {"regdb/all/visible_to_infrared", "regdb/all/infrared_to_visible"}
    (trial,) = result["regdb/all/visible_to_infrared"]
    assert (trial.query.tolist(), trial.gallery.tolist()) == ([0, 1], [2, 3])
    assert (trial.ignore, trial.cmc) == (None, "image")


LLCM = split_of(
    *((VISIBLE, pid, camera) for camera in (1, 3, 9) for pid in (5, 6)),
    *((INFRARED, pid, camera) for camera in (1, 9) for pid in (5, 6)),
    images=4,
)


def test_llcm_draws_the_gallery_of_each_direction_as_published() -> None:
    result = trials("llcm", LLCM)
    cameras = {VISIBLE: (1, 3, 9), INFRARED: (1, 9)}
    for asked, shown in ((VISIBLE, INFRARED), (INFRARED, VISIBLE)):
        group = result[f"llcm/all/{asked}_to_{shown}"]
        assert len(group) == 10
        for trial in group:
            assert trial.query.tolist() == LLCM.rows(asked).tolist()
            random.seed(trial.number)
            drawn = [
                random.choice([f"{shown}/{camera}/{pid}/{i}.jpg" for i in range(4)])
                for pid in (5, 6)
                for camera in cameras[shown]
            ]
            assert [LLCM.samples[row].image for row in trial.gallery] == drawn
            assert trial.cmc == "identity"


def test_llcm_drops_the_same_identity_by_the_same_camera_only() -> None:
    for group in trials("llcm", LLCM).values():
        for trial in group:
            ignored = trial.ignored()
            assert ignored is not None
            for q, query in enumerate(trial.query):
                for g, row in enumerate(trial.gallery):
                    a, b = LLCM.samples[query], LLCM.samples[row]
                    assert ignored[q, g] == ((a.pid, a.camera) == (b.pid, b.camera))


@pytest.mark.parametrize("kind", ["cuhk", "icfg", "rstp"])
def test_captions_search_images_and_each_image_stands_there_once(kind: str) -> None:
    split = split_of(
        (VISIBLE, 1, -1), (VISIBLE, 2, -1), (TEXT, 1, -1), (TEXT, 1, -1), (TEXT, 2, -1)
    )
    ((name, (trial,)),) = trials(kind, split).items()
    assert name == f"{kind}/all/text_to_image"
    assert (trial.query.tolist(), trial.gallery.tolist()) == ([2, 3, 4], [0, 1])
    assert (trial.ignore, trial.cmc) == (None, "image")


def test_text_to_image_by_hand() -> None:
    """Three captions, three images of two identities; worked on paper.

    Caption 0 (identity 1) ranks images 0 (right), 2, 1 (right): AP = (1/1 + 2/3) / 2, INP = 2/3.
    Caption 1 (identity 2) ranks 0, 2 (right), 1: AP = INP = 1/2. Caption 2 (identity 2): 2 first.
    """
    split = split_of(
        (VISIBLE, 1, -1), (VISIBLE, 1, -1), (VISIBLE, 2, -1),
        (TEXT, 1, -1), (TEXT, 2, -1), (TEXT, 2, -1),
    )  # fmt: skip
    features = np.zeros((6, 3), dtype=np.float32)
    features[:3] = np.eye(3)
    features[3:] = [[0.9, 0.1, 0.5], [0.8, 0.1, 0.6], [0.0, 0.1, 0.9]]
    (trial,) = LAYOUTS["cuhk"].protocol(split)
    result = score(features, split.pids, trial)
    assert result.num_valid_queries == 3
    np.testing.assert_allclose(result.cmc[:2], [2 / 3, 1])
    np.testing.assert_allclose(result.mAP, (5 / 6 + 1 / 2 + 1) / 3)
    np.testing.assert_allclose(result.mINP, (2 / 3 + 1 / 2 + 1) / 3)


def test_unknown_identities_are_no_queries_but_stand_in_the_gallery() -> None:
    split = split_of((VISIBLE, -1, -1), (VISIBLE, 0, -1), (INFRARED, 0, -1), (INFRARED, -1, -1))
    (trial,) = trials("folder", split)["folder/all/infrared_to_visible"]
    assert (trial.query.tolist(), trial.gallery.tolist()) == ([2], [0, 1])
    with pytest.raises(ValueError, match="needs pids"):
        list(LAYOUTS["folder"].protocol(split_of((VISIBLE, -1, -1), (INFRARED, -1, -1))))


def test_a_manifest_asks_with_the_modality_that_stands_first() -> None:
    split = split_of((TEXT, 1, -1), (TEXT, -1, -1), (VISIBLE, 1, -1))
    (trial,) = LAYOUTS["manifest"].protocol(split)
    assert trial.name == "manifest/all/query_to_gallery"
    assert (trial.query.tolist(), trial.gallery.tolist()) == ([0], [2])
    with pytest.raises(ValueError, match="test rows are visible"):
        list(LAYOUTS["manifest"].protocol(split_of((VISIBLE, 1, -1))))


@pytest.mark.parametrize("kind", ["sysu", "regdb", "llcm", "cuhk"])
def test_a_split_without_the_other_modality_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        list(LAYOUTS[kind].protocol(split_of((VISIBLE, 1, 1))))


@pytest.mark.parametrize("ignored", [False, True])
def test_chance_is_the_share_of_right_images_averaged_over_valid_queries(ignored: bool) -> None:
    pids = np.array([1, 2, 7, 1, 1, 2, 3])
    ignore = np.array([8, 9, 10]), np.array([8, 0, 0, 9])
    trial = Trial("a/b/c", 0, np.arange(3), np.arange(3, 7), ignore if ignored else None, "image")
    # Query 0: 2 of 4, or 1 of 3; query 1: 1 of 4, or 1 of 3; query 2 has nobody and does not count.
    expected = (1 / 3 + 1 / 3) / 2 if ignored else (2 / 4 + 1 / 4) / 2
    assert chance_rank1(pids, trial) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["sysu", "llcm"])
def test_matches_are_counted_without_the_masks(kind: str) -> None:
    split = {"sysu": SYSU, "llcm": LLCM}[kind]
    pids = np.where(split.pids == split.pids.max(), -1, split.pids)
    for trial in LAYOUTS[kind].protocol(split):
        matches = np.equal.outer(pids[trial.query], pids[trial.gallery]) & ~trial.ignored()
        expected = (matches.any(axis=1) & (pids[trial.query] >= 0)).sum()
        assert num_matched(pids, trial) == expected


def test_blocks_of_queries_have_their_part_of_the_mask() -> None:
    for trial in LAYOUTS["llcm"].protocol(LLCM):
        whole, half = trial.ignored(), len(trial.query) // 2
        parts = [trial.ignored(slice(half)), trial.ignored(slice(half, None))]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_unknown_captions_ask_nothing_and_are_nobody() -> None:
    split = split_of(
        (TEXT, 3, -1), (TEXT, -1, -1), (VISIBLE, 3, 1), (VISIBLE, -1, 1), (VISIBLE, -1, 1)
    )
    (trial,) = LAYOUTS["cuhk"].protocol(split)
    assert trial.query.tolist() == [0]
    every = Trial("a/b/c", 0, np.arange(2), np.arange(2, 5), None, "image")
    pids = np.array([3, -1, 3, -1, -1])
    assert chance_rank1(pids, every) == pytest.approx(1 / 3)
