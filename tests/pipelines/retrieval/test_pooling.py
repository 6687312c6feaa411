"""Tracklets and near-duplicates from the images' vectors to the answers of a gallery."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("lancedb")

from pipelines.errors import UserError
from pipelines.evaluation.alike import near_duplicates
from pipelines.evaluation.checkpoint import evaluate_checkpoint
from pipelines.retrieval import pooling, vectors
from pipelines.retrieval.embed import Embedded
from pipelines.retrieval.fill import add_vectors
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.search import query_by_id, search
from pipelines.retrieval.sources import Source
from reid_core.types import Modality, Sample
from tests.pipelines.trained import draw_folder, embed_alone, random_rows, save_run


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(checkpoint: Path, source: Source, out: Path, **_: Any) -> Embedded:
        embed_alone(checkpoint, source, out)
        return Embedded(vectors.read_info(out)["num_vectors"], 0, (), 0.0)

    monkeypatch.setattr(pooling, "embed", embed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; images of three tracks and one without."""
    root = tmp_path_factory.mktemp("tracks")
    save_run(root / "run")
    images = draw_folder(root / "images", visible=6, infrared=2)
    rows = ["image,modality,pid,camera,tracklet"]
    rows += [f"visible/{i}.png,visible,{i // 3},1,{i // 3}" for i in range(5)]
    rows += ["visible/5.png,visible,1,2,", *(f"infrared/{i}.png,infrared,0,3,0" for i in (0, 1))]
    (images / "list.csv").write_text("\n".join(rows))
    return root


def test_a_gallery_of_tracklets_answers_tracklets(place: Path, tmp_path: Path) -> None:
    source, out = Source(place / "images" / "list.csv"), tmp_path / "v"
    done = pooling.embed_tracklets(place / "run", source, out)
    assert done.num_vectors == 4, "three tracks and an image without one"
    add_vectors(tmp_path / "g", out)
    gallery = Gallery.open(tmp_path / "g")
    query = query_by_id(gallery, "tracklet/visible/1/0")
    assert query is not None
    hits = search(gallery, query, top=9)
    assert {(hit.id, hit.images) for hit in hits} == {
        ("tracklet/visible/1/1", 2),
        ("visible/5.png", 1),
        ("tracklet/infrared/3/0", 2),
    }
    assert hits[0].image.is_file(), "its first image is shown"

    rows = pq.read_table(vectors.part_files(out / "images")[0]).to_pylist()
    own = [np.array(row["vector"]) for row in rows if row["tracklet"] == 0 and row["camera"] == 1]
    mean = np.mean(own, axis=0)
    np.testing.assert_allclose(query.vector, mean / np.linalg.norm(mean), atol=1e-5)
    again = pooling.embed_tracklets(place / "run", source, out)
    assert again.num_vectors == 4
    assert add_vectors(tmp_path / "g", out).new == 0


def test_a_tracklet_is_of_its_earliest_image_in_whatever_order_parts_are_read(
    tmp_path: Path,
) -> None:
    day = datetime(2026, 11, 1, tzinfo=UTC)
    times = [None, day + timedelta(hours=2), day, day + timedelta(hours=1)]
    samples = [
        Sample(f"{i}.jpg", Modality.VISIBLE, 0, 1, tracklet=7, time=time)
        for i, time in enumerate(times)
    ]
    means = pooling._Means(8)
    for sample in samples:
        means.add(vectors.table([sample], random_rows(1, 8, seed=0)))
    (row,) = next(means.batches()).to_pylist()
    assert (row["time"], row["image"], row["images"]) == (day, "2.jpg", 4)


@pytest.mark.slow
def test_the_pages_script_cuts_crops_that_become_tracklets(place: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "watch_list.md").read_text()
    script = page[page.index("```python") + 9 :].partition("```")[0]
    names: dict[str, Any] = {}
    exec(script, names)
    rng = np.random.default_rng(0)
    for number in range(11):
        frame = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        boxes = [(-3, 2, 20, 50, 17), (30, 5.0, 99, 58, 4.0)]
        names["save_crops"](frame, boxes, number, out=tmp_path / "in" / "visible")
    source = Source(tmp_path / "in", by_folder=True)
    samples = list(source.samples())
    assert len(samples) == 6, "every fifth of eleven frames, of two tracks"
    assert len({sample.tracklet for sample in samples}) == 2
    done = pooling.embed_tracklets(place / "run", source, tmp_path / "v")
    assert done.num_vectors == 2


def test_one_of_near_duplicates_stays_and_the_others_are_named(place: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(place / "images" / "visible", images / "visible")
    for number in range(3):
        shutil.copy(images / "visible" / "2.png", images / "visible" / f"2-{number}.png")
    done, left_out = pooling.embed_distinct(
        place / "run", Source(images), tmp_path / "v", above=0.9999
    )
    assert (done.num_vectors, left_out) == (6, 3)
    (line,) = (tmp_path / "v" / pooling.DUPLICATES).read_text().splitlines()
    copies = {f"visible/2-{number}.png" for number in range(3)} | {"visible/2.png"}
    named = json.loads(line)
    assert {named["kept"], *named["left_out"]} == copies
    assert vectors.read_info(tmp_path / "v")["num_vectors"] == 6


@pytest.mark.slow
def test_drawn_identities_are_checked_and_ranked_by_their_tracks(
    tmp_path: Path, tree: Path
) -> None:
    run = save_run(tmp_path / "run")
    by_image = evaluate_checkpoint(run, kind="manifest", root=tree)
    by_track = evaluate_checkpoint(run, kind="manifest", root=tree, tracklets=True)
    (name,) = by_track.table
    counts = [result.table[name]["num_valid_queries"] for result in (by_image, by_track)]
    assert counts[0] == 3 * counts[1], "three infrared frames of a track"
    sets, note = near_duplicates(run, "manifest", tree, above=0.9)
    assert sum(map(len, sets)) > 0
    assert f"in {len(sets):,} sets" in note


class TestBadInput:
    def test_no_tracklets(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="has a tracklet: a manifest's column"):
            pooling.embed_tracklets(place / "run", Source(place / "images"), tmp_path / "v")

    def test_a_track_of_two_identities(self, place: Path, tmp_path: Path) -> None:
        images = draw_folder(tmp_path / "i", visible=2, infrared=0)
        rows = ["image,modality,pid,camera,tracklet"]
        rows += [f"visible/{i}.png,visible,{i},1,4" for i in range(2)]
        (images / "list.csv").write_text("\n".join(rows))
        with pytest.raises(UserError, match=r"tracklet 4 of camera 1 shows identity 0 .* and 1 on"):
            pooling.embed_tracklets(place / "run", Source(images / "list.csv"), tmp_path / "v")

    def test_a_cosine_that_is_none(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="--dedup 3"):
            pooling.embed_distinct(place / "run", Source(place / "images"), tmp_path, above=3)
        with pytest.raises(UserError, match="--above 0"):
            near_duplicates(place / "run", "sysu", place, above=0)

    def test_a_folder_of_other_vectors(self, place: Path, tmp_path: Path) -> None:
        source = Source(place / "images" / "list.csv")
        embed_alone(place / "run", source, tmp_path / "v")
        with pytest.raises(UserError, match="holds vectors of image, not of tracklet"):
            pooling.embed_tracklets(place / "run", source, tmp_path / "v")
        (tmp_path / "w").mkdir()
        (tmp_path / "w" / "notes").write_text("")
        with pytest.raises(UserError, match="is not empty"):
            pooling.embed_tracklets(place / "run", source, tmp_path / "w")
