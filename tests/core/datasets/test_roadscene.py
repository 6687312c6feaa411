"""Places of aligned images become a tree that the reader of SYSU-MM01 takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_core.datasets import roadscene, sysu
from reid_core.datasets.counts import count, expected_counts
from reid_core.types import Modality


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two scenes of noise, in both spectra, and a neighbor that is too near to count."""
    rng = np.random.default_rng(0)
    for folder, channels in (("crop_HR_visible", 3), ("cropinfrared", 1)):
        (tmp_path / folder).mkdir()
        for number in (1, 5, 40):
            pixels = rng.integers(0, 255, (160, 240, channels), dtype=np.uint8).squeeze()
            Image.fromarray(pixels).save(tmp_path / folder / f"FLIR_{number:05d}.jpg")
    return tmp_path


def test_places_are_seen_by_six_cameras_in_tracks(source: Path, tmp_path: Path) -> None:
    counts = roadscene.write(source, tmp_path / "a", seed=3)
    assert sum(counts.values()) == 6, "three patches of each of two scenes"
    assert roadscene.write(source, tmp_path / "b", seed=3) == counts
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg"))
    assert len(files) == 6 * (4 * 4 + 2 * 6)
    for file in files[:: len(files) // 7]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    thermal = np.asarray(Image.open(tmp_path / "a" / "cam3" / "0001" / "0001.jpg")).astype(int)
    assert thermal.shape == (128, 64, 3)
    assert np.ptp(thermal, axis=2).max() < 30, "gray"


def test_a_folder_with_another_tree_is_not_touched(source: Path, tmp_path: Path) -> None:
    counts = roadscene.write(source, tmp_path / "tree", per_scene=2)
    before = contents(tmp_path / "tree")
    assert roadscene.write(source, tmp_path / "tree", per_scene=2) == counts
    for other in ({"seed": 1}, {"per_scene": 1}, {"difficulty": "easy"}):
        with pytest.raises(ValueError, match=r"holds places of RoadScene .*choose another"):
            roadscene.write(source, tmp_path / "tree", **{"per_scene": 2, **other})
    (source / "cropinfrared" / "FLIR_00040.jpg").unlink()
    with pytest.raises(ValueError, match="exists and holds places"):
        roadscene.write(source, tmp_path / "tree", per_scene=2)
    assert contents(tmp_path / "tree") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="something else"):
        roadscene.write(source, tmp_path / "mine")


def test_what_was_killed_is_no_data_set_until_it_is_completed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, tree = tmp_path / "whole", tmp_path / "tree"
    counts = roadscene.write(source, whole)
    saved: list[Path] = []
    save = Image.Image.save

    def dies(image: Image.Image, path: Path, **how: int) -> None:
        if len(saved) == 40:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        saved.append(path)
        save(image, path, **how)

    monkeypatch.setattr(Image.Image, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        roadscene.write(source, tree)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="train_id"):
        sysu.read(tree)
    assert roadscene.write(source, tree) == counts
    assert contents(tree) == contents(whole)


def contents(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def test_the_reader_takes_it(tmp_path: Path) -> None:
    """Eighteen scenes are three runs of neighbors: one trains, one validates, one is tested."""
    for folder in ("crop_HR_visible", "cropinfrared"):
        (tmp_path / folder).mkdir()
        for number in range(0, 360, 20):
            pixels = np.random.default_rng(number).integers(0, 255, (150, 90), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"FLIR_{number:05d}.jpg")
    counts = roadscene.write(tmp_path, tmp_path / "tree", seed=0, per_scene=1)
    data = sysu.read(tmp_path / "tree")
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        assert len(np.unique(split.pids)) == counts[name] > 0
    scenes = [f"FLIR_{number:05d}.jpg" for number in range(0, 360, 20)]
    split_of = roadscene._split(scenes, np.random.default_rng(0))
    runs = [{split_of[scene] for scene in scenes[i : i + 8]} for i in (0, 8, 16)]
    assert sorted(name for run in runs for name in run) == ["test", "train", "val"]
    assert all(not line.wrong for line in count(data, expected_counts(data)[1]))
    assert {sample.modality for sample in data.test.samples} == {
        Modality.VISIBLE,
        Modality.INFRARED,
    }


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("folder", "crop_HR_visible is missing"),
        ("partner", r"FLIR_00001\.jpg is missing"),
        ("name", r"holiday\.jpg is no name of RoadScene"),
        ("difficulty", "easy, default, hard"),
    ],
)
def test_what_is_wrong_is_named(source: Path, tmp_path: Path, spoil: str, says: str) -> None:
    visible, difficulty = source / "crop_HR_visible", "default"
    if spoil == "folder":
        visible.rename(source / "elsewhere")
    elif spoil == "partner":
        (visible / "FLIR_00001.jpg").unlink()
    elif spoil == "name":
        (source / "cropinfrared" / "FLIR_00001.jpg").rename(source / "cropinfrared" / "holiday.jpg")
    else:
        difficulty = "extreme"
    with pytest.raises(ValueError, match=says):
        roadscene.write(source, tmp_path / "out", difficulty=difficulty)
