"""What a source lists, and the parts it is cut into: every image once, in order, errors by name."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import UserError
from pipelines.retrieval.sources import Part, Source, parts, record_id
from reid_core.datasets.manifest import KIND_KEY
from reid_core.types import Modality, Sample
from tests.pipelines.trained import draw_folder


def test_an_image_with_two_sentences_is_embedded_once(tmp_path: Path) -> None:
    lines = "image,modality,caption", "a.png,visible,red coat", "a.png,visible,blue bag"
    (tmp_path / "list.csv").write_text("\n".join(lines))
    (sample,) = Source(tmp_path / "list.csv").samples()
    assert (sample.modality, sample.image) == (Modality.VISIBLE, "a.png")


class TestParts:
    RECORDS = tuple(Sample(f"{i:05d}.jpg", Modality.VISIBLE) for i in range(3000))

    def test_hold_every_record_once_and_in_order(self) -> None:
        result = list(parts(self.RECORDS, mean_rows=50))
        assert tuple(sample for part in result for sample in part.samples) == self.RECORDS
        sizes = [len(part.samples) for part in result]
        assert max(sizes) <= 200
        assert 30 < np.mean(sizes) < 70

    def test_a_stream_without_end_is_cut_as_it_comes(self) -> None:
        """No more than one part is held, however many images there are."""
        endless = (Sample(f"{i}.jpg", Modality.VISIBLE) for i in itertools.count())
        result = list(itertools.islice(parts(endless, mean_rows=50), 20))
        assert sum(len(part.samples) for part in result) < 20 * 200

    def test_an_added_record_leaves_far_parts_alone(self) -> None:
        before = {part.key for part in parts(self.RECORDS, mean_rows=50)}
        added = [*self.RECORDS[:1500], Sample("01499b.jpg", Modality.VISIBLE), *self.RECORDS[1500:]]
        after = {part.key for part in parts(added, mean_rows=50)}
        assert len(after - before) <= 2

    def test_another_identity_is_another_part(self) -> None:
        (one,) = parts([Sample("a.jpg", Modality.VISIBLE)])
        (other,) = parts([Sample("a.jpg", Modality.VISIBLE, pid=1)])
        assert isinstance(one, Part)
        assert one.key != other.key


class TestSource:
    def test_folders_name_the_modality_at_any_depth(self, tmp_path: Path) -> None:
        draw_folder(tmp_path / "a" / "day 1", visible=1, infrared=1)
        result = [(r.image, r.modality) for r in Source(tmp_path).samples()]
        assert result == [
            ("a/day 1/infrared/0.png", Modality.INFRARED),
            ("a/day 1/visible/0.png", Modality.VISIBLE),
        ]

    def test_what_a_layout_does_not_read_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        draw_folder(tmp_path / "test", visible=1, infrared=0)
        draw_folder(tmp_path / "gallery", visible=1, infrared=0)
        assert len(list(Source(tmp_path, "folder").samples())) == 1
        assert f"{tmp_path}: not read: gallery, which holds images" in caplog.text

    def test_folders_of_other_sources_share_identities_by_name_alone(self, tmp_path: Path) -> None:
        days = {"monday": ("anna", "carl", "0012"), "tuesday": ("bob", "carl")}
        known: dict[str, dict[str, int]] = {}
        for day, names in days.items():
            for name in names:
                draw_folder(tmp_path / day / "drawn", visible=1, infrared=0)
                place = tmp_path / day / "test" / "visible" / name
                place.mkdir(parents=True)
                (tmp_path / day / "drawn" / "visible" / "0.png").rename(place / "1.png")
            samples = Source(tmp_path / day, "folder").samples()
            known[day] = {sample.image.split("/")[2]: sample.pid for sample in samples}
        assert known["monday"]["carl"] == known["tuesday"]["carl"] < 2**53
        assert known["monday"]["0012"] == 12
        assert len({pid for names in known.values() for pid in names.values()}) == 4
        (tmp_path / "monday" / "test" / "visible" / "0012").rename(
            other := tmp_path / "monday" / "test" / "visible" / "12"
        )
        assert 12 in {sample.pid for sample in Source(tmp_path / "monday", "folder").samples()}
        twin = other.with_name("012")
        twin.mkdir()
        (twin / "1.png").write_bytes((other / "1.png").read_bytes())
        with pytest.raises(UserError, match=r"012 and 12 would be one identity, 12"):
            list(Source(tmp_path / "monday", "folder").samples())

    def test_a_converted_folder_shares_identities_with_the_folder(self, tmp_path: Path) -> None:
        """Its manifest counts them from 0."""
        images = ("visible/0002/a.png", "visible/anna/a.png", "visible/a.png")
        for image in images:
            (tmp_path / "tree" / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / image).write_bytes(b"not opened")
        columns = {"image": images, "modality": ["visible"] * 3, "pid": [0, 1, -1]}
        table = pa.table(columns).replace_schema_metadata({KIND_KEY: "folder"})
        (tmp_path / "packed").mkdir()
        pq.write_table(table, listed := tmp_path / "packed" / "manifest.parquet")
        tree = Source(tmp_path / "tree", "folder", "train").samples()
        expected = {sample.image: sample.pid for sample in tree}
        assert expected["visible/0002/a.png"] == 2
        for source in (Source(listed.parent, "manifest", "train"), Source(listed)):
            assert {sample.image: sample.pid for sample in source.samples()} == expected

    def test_a_manifest_that_is_named_is_the_one_that_is_read(self, tmp_path: Path) -> None:
        for name in ("manifest", "night"):
            rows = f"image,modality,split\n{name}.jpg,visible,test\n"
            (tmp_path / f"{name}.csv").write_text(rows)
        (sample,) = Source(tmp_path / "night.csv", "manifest").samples()
        assert sample.image == "night.jpg"
        assert Source(tmp_path / "night.csv", "manifest").root == tmp_path
        with pytest.raises(UserError, match="--kind folder is the layout of a folder"):
            Source(tmp_path / "night.csv", "folder")

    def test_a_track_is_a_number_where_its_name_is_one(self, tmp_path: Path) -> None:
        wide = "\N{FULLWIDTH DIGIT FIVE}"
        names = ["5", "5.0", "--5", wide, "9" * 30 + "x", ""]
        rows = [f"{i}.jpg,visible,{name}" for i, name in enumerate(names)]
        text = "\n".join(["image,modality,tracklet", *rows])
        (tmp_path / "m.csv").write_text(text, encoding="utf-8")
        tracks = [sample.tracklet for sample in Source(tmp_path / "m.csv").samples()]
        assert tracks[:2] == [5, 5]
        assert tracks[-1] == -1
        assert len({5, *tracks[2:5]}) == 4, "neither is track 5"
        assert all(0 <= track < 2**63 for track in tracks[:-1])

    def test_a_place_whose_name_is_not_utf8(self, tmp_path: Path) -> None:
        place = tmp_path / os.fsdecode(b"caf\xe9")
        place.mkdir()
        with pytest.raises(UserError, match=r"caf\\xe9 is not UTF-8.*rename it"):
            Source(place)

    def test_unknown_modality_names_the_image_and_the_remedy(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 16)).save(tmp_path / "who.png")
        with pytest.raises(UserError, match=r"who\.png.*--modality visible"):
            list(Source(tmp_path).samples())
        (sample,) = Source(tmp_path, modality=Modality.INFRARED).samples()
        assert sample == Sample("who.png", Modality.INFRARED)

    def test_manifests_of_all_kinds_agree(self, tmp_path: Path) -> None:
        rows = [
            {"image": "a.jpg", "modality": "visible", "pid": 3, "camera": 2},
            {"image": "b.jpg", "modality": "infrared", "pid": -1, "camera": -1},
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        (tmp_path / "m.csv").write_text(
            "image,modality,pid,camera\na.jpg,visible,3,2\nb.jpg,infrared,,\n"
        )
        expected = [
            Sample("a.jpg", Modality.VISIBLE, 3, 2),
            Sample("b.jpg", Modality.INFRARED),
        ]
        for suffix in ("parquet", "jsonl", "csv"):
            assert list(Source(tmp_path / f"m.{suffix}").samples()) == expected

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("picture,modality\na.jpg,visible\n", "has no column image; it has picture"),
            ("image,modality\na.jpg,thermal\n", "modality 'thermal' is none of"),
            ("image,modality,pid\na.jpg,visible,x\n", "pid must be a whole number"),
            ("image,modality\na.jpg,text\n", "needs a caption"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "m.csv").write_text(content)
        with pytest.raises(UserError, match=message):
            list(Source(tmp_path / "m.csv").samples())

    def test_what_is_no_source(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            Source(tmp_path / "nothing")
        (tmp_path / "a.txt").touch()
        with pytest.raises(UserError, match="is no manifest"):
            Source(tmp_path / "a.txt")
        with pytest.raises(UserError, match="--kind sysus"):
            Source(tmp_path, kind="sysus")

    def test_ids_of_sentences_differ_by_their_words(self) -> None:
        one, other = (Sample("a.jpg", Modality.TEXT, caption=words) for words in ("red", "blue"))
        assert record_id(one) != record_id(other)
        assert record_id(Sample("a.jpg", Modality.VISIBLE)) == "a.jpg"
