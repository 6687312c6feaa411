"""The generated world: what is written, that it is the same again, and what difficulty means."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from reid_core.datasets import LAYOUTS, synthetic, sysu
from reid_core.datasets.synthetic import captions, layouts, palettes
from reid_core.datasets.synthetic.drawing import SHADES, Material
from reid_core.datasets.synthetic.figure import Pose, draw_figure
from reid_core.datasets.synthetic.identities import COLORS, VIEWS, draw_identity
from reid_core.types import Modality, Split

IDENTITIES = 10


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "sysu"
    synthetic.write(root, num_identities=IDENTITIES, seed=3)
    return root


def crowd(number: int) -> list:
    return [draw_identity(np.random.default_rng([11, i])) for i in range(number)]


def test_the_loader_counts_what_expected_json_says(tree: Path) -> None:
    dataset = sysu.read(tree)
    expected = json.loads((tree / "expected.json").read_text())
    assert set(expected) == {"train", "val", "test"}
    for name, by_modality in expected.items():
        split = getattr(dataset, name)
        for modality, counts in by_modality.items():
            rows = split.rows(Modality(modality))
            assert counts == {
                "ids": len(set(split.pids[rows])),
                "cameras": len(set(split.cameras[rows])),
                "images": len(rows),
            }


def test_every_file_belongs_to_exactly_one_split_and_identities_do_not_overlap(tree: Path) -> None:
    dataset = sysu.read(tree)
    splits = (dataset.train, dataset.val, dataset.test)
    listed = [sample.image for split in splits for sample in split.samples]
    assert sorted(listed) == sorted(name for name in contents(tree) if name.endswith(".jpg"))
    assert [len(set(split.pids)) for split in splits] == [7, 1, 2]
    assert len(set().union(*(split.pids.tolist() for split in splits))) == IDENTITIES


def test_images_are_twice_as_high_as_wide_and_infrared_has_one_channel(tree: Path) -> None:
    for sample in sysu.read(tree).test.samples:
        pixels = np.asarray(Image.open(tree / sample.image))
        assert pixels.shape == (96, 48, 3)
        gray = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(
            pixels[..., 1], pixels[..., 2]
        )
        assert gray == (sample.modality == Modality.INFRARED)


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(
    tree: Path, tmp_path: Path
) -> None:
    synthetic.write(tmp_path / "again", num_identities=IDENTITIES, seed=3, workers=2)
    assert contents(tmp_path / "again") == contents(tree)


def test_another_seed_gives_other_images_and_another_split(tree: Path, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "other", num_identities=IDENTITIES, seed=4)
    ours, other = contents(tree), contents(tmp_path / "other")
    shared = {name for name in ours.keys() & other.keys() if name.endswith(".jpg")}
    assert all(ours[name] != other[name] for name in shared)
    assert ours["exp/test_id.txt"] != other["exp/test_id.txt"]


def test_difficulty_changes_infrared_images_only(tree: Path, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "hard", num_identities=IDENTITIES, seed=3, difficulty="hard")
    ours, hard = contents(tree), contents(tmp_path / "hard")
    changed = {name[:4] for name in ours if ours[name] != hard[name] and name.endswith(".jpg")}
    assert changed == {"cam3", "cam6"}


def test_frames_of_a_track_resemble_each_other_more_than_other_tracks(tree: Path) -> None:
    def distance(a: Path, b: Path) -> float:
        first, second = (np.asarray(Image.open(path), dtype=float) for path in (a, b))
        return float(np.abs(first - second).mean())

    folders = sorted((tree / "cam4").iterdir())
    within = np.mean([distance(f / "0001.jpg", f / "0002.jpg") for f in folders])
    across = np.mean([distance(f / "0001.jpg", f / "0003.jpg") for f in folders])
    assert within < 0.7 * across


def test_writing_again_does_nothing_and_an_interrupted_tree_is_completed(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    synthetic.write(root, num_identities=3, seed=0)
    before = contents(root)
    stamp = (root / "expected.json").stat().st_mtime_ns
    synthetic.write(root, num_identities=3, seed=0)
    assert (root / "expected.json").stat().st_mtime_ns == stamp
    (root / "expected.json").unlink()
    (root / "cam6" / "0002" / "0003.jpg").unlink()
    synthetic.write(root, num_identities=3, seed=0)
    assert contents(root) == before
    with pytest.raises(ValueError, match="choose another root"):
        synthetic.write(root, num_identities=3, seed=1)


@pytest.mark.parametrize("layout", ["sysu", pytest.param("llcm", marks=pytest.mark.slow)])
def test_mismatched_cameras_share_some_training_identities_and_all_tested_ones(
    layout: str, tmp_path: Path
) -> None:
    """Half of the training identities, evenly on both sides; no other image changes."""
    root = tmp_path / layout
    arguments: dict[str, Any] = {"num_identities": 14, "seed": 5, "layout": layout, "height": 32}
    synthetic.write(root, **arguments, mismatch=0.5)
    dataset = LAYOUTS[layout].read(root)
    visible, infrared = (seen_by(dataset.train, m) for m in (Modality.VISIBLE, Modality.INFRARED))
    assert len(visible ^ infrared) == round(0.5 * len(visible | infrared))
    assert abs(len(visible - infrared) - len(infrared - visible)) <= 1
    for split in (dataset.val, dataset.test):
        assert seen_by(split, Modality.VISIBLE) == seen_by(split, Modality.INFRARED)
    expected = json.loads((root / "expected.json").read_text())
    assert expected["train"]["infrared"]["ids"] == len(infrared)
    rows = dataset.train.rows(Modality.VISIBLE)
    assert expected["train"]["visible"]["images"] == len(rows)
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    synthetic.write(whole, **arguments)
    for file in root.rglob("*.jpg"):
        assert file.read_bytes() == (whole / file.relative_to(root)).read_bytes()
    synthetic.write(apart, **arguments, mismatch=1)
    train = LAYOUTS[layout].read(apart).train
    assert not seen_by(train, Modality.VISIBLE) & seen_by(train, Modality.INFRARED)


def seen_by(split: Split, modality: Modality) -> set[int]:
    return set(split.pids[split.rows(modality)].tolist())


def test_a_folder_with_other_content_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="something else"):
        synthetic.write(tmp_path, num_identities=3, seed=0)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "market"}, "valid: sysu"),
        ({"mismatch": 1.5}, "share between 0 and 1"),
        ({"layout": "regdb", "mismatch": 0.5}, "choose sysu or llcm"),
        ({"difficulty": "brutal"}, "valid: easy, default, hard"),
        ({"num_identities": 2}, "at least 3 identities"),
        ({"num_identities": 10_000}, "end at 9999"),
        ({"height": 63}, "must be even"),
        ({"workers": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_named_with_the_valid_ones(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic.write(tmp_path / "tree", **{"num_identities": 3, "seed": 0, **arguments})
    assert not (tmp_path / "tree").exists()


def test_a_full_disk_is_reported_with_the_root_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=f"{tmp_path}.*No space left.*free space"):
        synthetic.write(tmp_path / "tree", num_identities=3, seed=0)


def test_an_id_says_nothing_about_the_order_of_the_identities() -> None:
    recipe = layouts.Recipe(400, 5, "sysu", "default", 64)
    ids = layouts._ids(recipe)
    assert sorted(ids) == list(range(1, 401))
    assert abs(spearmanr(ids, np.arange(400)).statistic) < 0.15


@pytest.mark.parametrize(
    ("difficulty", "low", "high"),
    [("easy", 0.9, 1.0), ("default", -0.25, 0.25), ("hard", -0.25, 0.25)],
)
def test_how_far_luminance_tells_infrared_reflectance(
    difficulty: str, low: float, high: float
) -> None:
    luminance, reflectance = [], []
    for i, identity in enumerate(crowd(300)):
        setting = palettes.DIFFICULTIES[difficulty]
        values = palettes.reflectances(identity, setting, np.random.default_rng([1, i]))
        luminance.append(palettes.luminance(np.array(palettes._RGB[identity.upper.color]) / 255))
        reflectance.append(values[Material.UPPER])
    assert low <= spearmanr(luminance, reflectance).statistic <= high


def test_the_default_law_can_be_learnt_and_the_hard_case_cannot() -> None:
    """Share of the reflectance's variance that the color explains."""

    def explained(difficulty: str) -> float:
        groups: dict[str, list[float]] = {color: [] for color in COLORS}
        for i, identity in enumerate(crowd(600)):
            setting = palettes.DIFFICULTIES[difficulty]
            values = palettes.reflectances(identity, setting, np.random.default_rng([1, i]))
            groups[identity.upper.color].append(values[Material.UPPER])
        residual = np.concatenate([np.array(g) - np.mean(g) for g in groups.values()])
        return float(1.0 - residual.var() / np.concatenate(list(groups.values())).var())

    assert explained("default") > 0.9
    assert explained("hard") < 0.1


@pytest.mark.parametrize("view", VIEWS)
def test_a_figure_stands_inside_its_canvas_with_all_it_wears(view: str) -> None:
    pose = Pose(view=view, phase=1.0, top=8.0, axis=64.0, scale=112.0)
    for identity in crowd(20):
        codes = draw_figure(identity, pose, (128, 128))
        rows, columns = np.nonzero(codes)
        assert rows.min() >= 4
        assert rows.max() <= 124
        assert columns.min() >= 32 - 8
        assert columns.max() < 96 + 8
        shown = set((codes[codes > 0] // SHADES).tolist())
        assert {Material.SKIN, Material.UPPER, Material.LOWER, Material.SHOES} <= shown


def test_left_and_right_views_mirror_each_other() -> None:
    """Up to a canvas pixel of rasterization, which the thin limbs feel."""

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return float((a & b).sum() / (a | b).sum())

    for identity in crowd(30):
        right, left = (
            draw_figure(identity, Pose(view, 0.7, 8.0, 64.0, 112.0), (128, 129)) > 0
            for view in ("right", "left")
        )
        assert overlap(right, left[:, ::-1]) > overlap(right, left) + 0.05


def test_a_catalogue_is_the_same_again_and_shows_four_looks_of_each_identity() -> None:
    first, again = (synthetic.catalogue(40, seed=2) for _ in range(2))
    assert np.array_equal(first.images, again.images)
    assert first.captions == again.captions
    assert first.images.shape == (40, 64, 64, 3)
    assert first.words.shape == (40, len(first.word_names))
    assert np.array_equal(np.bincount(first.identity), np.full(10, 4))
    assert not np.array_equal(first.images, synthetic.catalogue(40, seed=3).images)


def test_catalogue_and_target_identities_differ_for_the_same_seed(tree: Path) -> None:
    targets = [
        draw_identity(layouts._generator(3, layouts._IDENTITIES, i)) for i in range(IDENTITIES)
    ]
    words = synthetic.catalogue(4 * IDENTITIES, seed=3).words[::4]
    for index, identity in enumerate(targets):
        shape_words = captions.words(identity, "front", colors=False)
        assert not np.array_equal(words[index] & shape_words, shape_words)


def test_captions_speak_of_colors_only_where_the_image_has_some() -> None:
    drawn = synthetic.catalogue(200, seed=1)
    gray = np.all(drawn.images == drawn.images[..., :1], axis=(1, 2, 3))
    assert 0.25 < gray.mean() < 0.55
    for caption, is_gray in zip(drawn.captions, gray, strict=True):
        spoken = set(caption.replace(",", " ").replace(".", " ").split())
        assert bool(spoken & set(COLORS)) != is_gray


def test_words_hold_what_the_caption_says() -> None:
    identity = crowd(1)[0]
    held = captions.words(identity, "front", colors=True)
    names = {captions.WORDS[i] for i in np.flatnonzero(held)}
    assert {
        identity.gender,
        f"upper {identity.upper.kind}",
        f"upper {identity.upper.color}",
    } <= names
    for seed in range(8):
        sentence = captions.caption(identity, "front", np.random.default_rng(seed))
        for said in (
            identity.gender,
            identity.upper.kind,
            identity.upper.color,
            identity.lower.kind,
        ):
            assert said in sentence
