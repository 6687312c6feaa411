"""Adding images to a gallery: again, after repairs and interruptions, of several folders."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

pytest.importorskip("lancedb")

from pipelines import cli
from pipelines.errors import UserError
from pipelines.evaluation.encoder import open_encoder
from pipelines.retrieval import fill, missing, pooling, vectors
from pipelines.retrieval.embedder import content_hash
from pipelines.retrieval.fill import add_images, add_vectors
from pipelines.retrieval.gallery import Added, Facts, Gallery
from pipelines.retrieval.sources import Source
from reid_core.datasets import regdb, synthetic
from reid_core.types import Modality, Sample
from tests.pipelines.trained import draw_folder, embed_alone, random_rows, save_run, with_data

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("trained"))


class TestUnreadable:
    def test_their_share_is_of_the_whole_source_however_often_it_is_added(
        self, checkpoint: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "visible" / "3.png").write_bytes(b"no image")
        for new in (11, 0, 1):
            if new == 1:
                draw_folder(folder, visible=8, infrared=0, first=7)
            added = add_images(tmp_path / "g", checkpoint, Source(folder), max_unreadable=0.1)
            assert (added.new, added.replaced) == (new, 0)
            assert "left out: " in caplog.text
            assert "visible/3.png" in caplog.text
            caplog.clear()
        with pytest.raises(UserError, match=r"1 images cannot.*0\.01 of 13 allows"):
            add_images(tmp_path / "g", checkpoint, Source(folder))

    def test_one_that_is_replaced_is_added(
        self, checkpoint: Path, folder: Path, tmp_path: Path
    ) -> None:
        image = folder / "visible" / "3.png"
        content = image.read_bytes()
        image.write_bytes(b"no image")
        for _ in range(2):
            with pytest.raises(UserError, match=r"visible/3\.png"):
                add_images(tmp_path / "g", checkpoint, Source(folder))
        image.write_bytes(content)
        assert add_images(tmp_path / "g", checkpoint, Source(folder)).new == 12
        assert not list((tmp_path / "g").glob(".adding-*"))

    def test_nothing_but_them(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "i" / "visible").mkdir(parents=True)
        (tmp_path / "i" / "visible" / "0.png").write_bytes(b"no image")
        source = Source(tmp_path / "i")
        assert add_images(tmp_path / "g", checkpoint, source, max_unreadable=1).total == 0


def test_an_image_that_is_replaced_after_an_interruption_is_added_as_it_is(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fill, "add_vectors", killed)
    with pytest.raises(KeyboardInterrupt):
        add_images(tmp_path / "g", checkpoint, Source(folder))
    monkeypatch.setattr(fill, "add_vectors", add_vectors)
    shutil.copy(folder / "visible" / "1.png", folder / "visible" / "0.png")
    assert add_images(tmp_path / "g", checkpoint, Source(folder)).new == 12
    assert add_images(tmp_path / "g", checkpoint, Source(folder)) == Added(0, 0, 12)
    table = Gallery.open(tmp_path / "g")._table.to_arrow().to_pydict()
    content = dict(zip(table["id"], table["content"], strict=True))
    assert content["visible/0.png"] == content_hash((folder / "visible" / "0.png").read_bytes())


class TestAsTrained:
    """What the run says of the source is heard before anything is listed."""

    def test_identities_of_regdb_are_those_of_the_runs_trial(self, tmp_path: Path) -> None:
        root, run = tmp_path / "regdb", save_run(tmp_path / "run", kind="regdb", trial=5)
        synthetic.write(root, num_identities=4, seed=1, layout="regdb", height=32)
        expected = {sample.image for sample in regdb.read(root, trial=5).test.samples}
        assert expected != {sample.image for sample in regdb.read(root, trial=1).test.samples}
        added = add_images(tmp_path / "g", run, Source(root, "regdb"))
        opened = Gallery.open(tmp_path / "g")
        assert {name for name in expected if opened.get(name)} == expected
        assert added.total == len(expected)

    def test_images_below_the_runs_extra_roots_are_added_and_pooled(
        self, checkpoint: Path, folder: Path, tmp_path: Path
    ) -> None:
        with_data(checkpoint, tmp_path / "run", extra_roots=[str(folder)])
        listed = tmp_path / "lists" / "list.csv"
        listed.parent.mkdir()
        rows = [f"{folder}/visible/{number}.png,visible,0" for number in range(3)]
        listed.write_text("\n".join(["image,modality,tracklet", *rows]))
        assert add_images(tmp_path / "g", tmp_path / "run", Source(listed)).new == 3
        done = pooling.embed_tracklets(tmp_path / "run", Source(listed), tmp_path / "v")
        assert done.num_vectors == 1
        with pytest.raises(UserError, match="lies outside the data set"):
            add_images(tmp_path / "h", checkpoint, Source(listed))


class TestSeveralFolders:
    """Ids are paths below the source: those of two folders may be the same."""

    def test_an_image_takes_no_other_folders_row(self, checkpoint: Path, tmp_path: Path) -> None:
        monday = draw_folder(tmp_path / "monday", visible=2, infrared=0)
        tuesday = draw_folder(tmp_path / "tuesday", visible=4, infrared=0, first=1)
        (tuesday / "visible" / "1.png").write_bytes((tuesday / "visible" / "2.png").read_bytes())
        add_images(tmp_path / "g", checkpoint, Source(monday))
        said = rf"visible/1\.png is known from {monday},.* {tuesday},.*holds both,.*--root {monday}"
        with pytest.raises(UserError, match=said):
            add_images(tmp_path / "g", checkpoint, Source(tuesday))
        out = embed_alone(checkpoint, Source(tuesday), tmp_path / "vectors")
        with pytest.raises(UserError, match=said):
            add_vectors(tmp_path / "g", out)
        opened = Gallery.open(tmp_path / "g")
        assert len(opened) == 2
        opened.remove(ids=["visible/1.png"])
        assert add_vectors(tmp_path / "g", out).new == 3

    def test_the_gallery_is_asked_for_some_names_at_a_time(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many rows of other roots it holds; of VECTORS no vector is read for it."""
        monkeypatch.setattr(missing, "_ASKED_FOR", 2)
        asked: list[int] = []
        scan = Gallery.scan

        def noted(*args: Any) -> Iterator[pa.RecordBatch]:
            asked.append(len(args[2].ids) if len(args) > 2 else 0)
            return scan(*args)

        monkeypatch.setattr(Gallery, "scan", noted)
        first = draw_folder(tmp_path / "first", visible=5, infrared=0)
        other = draw_folder(tmp_path / "other", visible=8, infrared=0, first=1)
        for number in range(1, 5):
            (other / f"visible/{number}.png").write_bytes((other / "visible/7.png").read_bytes())
        out = embed_alone(checkpoint, Source(first), tmp_path / "vectors")
        add_vectors(tmp_path / "g", out)
        add_vectors(tmp_path / "g", out)
        assert not asked, "no row of another root"
        with pytest.raises(UserError, match=r"/[1-4]\.png, one of 4 such names, is known"):
            add_images(tmp_path / "g", checkpoint, Source(other))
        assert asked == [0, 2, 2]
        out, asked[:] = embed_alone(checkpoint, Source(other), tmp_path / "more"), []
        monkeypatch.delattr(fill, "_as_rows")
        with pytest.raises(UserError, match=r"/[1-4]\.png, one of 4 such names, is known"):
            add_vectors(tmp_path / "g", out)
        assert asked == [2, 2, 2, 1]

    def test_a_folder_that_was_moved_is_the_same(
        self, checkpoint: Path, folder: Path, tmp_path: Path
    ) -> None:
        add_images(tmp_path / "g", checkpoint, Source(folder))
        moved = folder.rename(tmp_path / "elsewhere")
        added = add_images(tmp_path / "g", checkpoint, Source(moved))
        assert (added.new, added.replaced, added.total) == (0, 12, 12)
        row = Gallery.open(tmp_path / "g").get("visible/0.png")
        assert row is not None
        assert row.file == moved / "visible" / "0.png"

    def test_images_that_rows_name_by_their_place_are_one_wherever_the_list_lies(
        self, checkpoint: Path, folder: Path, tmp_path: Path
    ) -> None:
        with_data(checkpoint, tmp_path / "run", extra_roots=[str(folder)])
        for place in ("one", "other"):
            (tmp_path / place).mkdir()
            listed = tmp_path / place / "list.csv"
            listed.write_text(f"image,modality\n{folder}/visible/0.png,visible\n")
            added = add_images(tmp_path / "g", tmp_path / "run", Source(listed))
            shutil.copy(folder / "visible" / "1.png", folder / "visible" / "0.png")
        assert (added.replaced, added.total) == (1, 1)


def test_a_sentence_takes_the_row_of_an_equal_one_only_with_its_image(tmp_path: Path) -> None:
    """Its id and content are of the words alone."""
    rows = random_rows(3, 8, seed=0)
    image = Sample("1.jpg", Modality.VISIBLE)
    about, alone = (Sample(name, Modality.TEXT, caption="in red") for name in ("1.jpg", ""))

    def added(folder: str, *samples: Sample) -> Added:
        out = tmp_path / f"{folder}{len(samples)}{samples[0].modality}{samples[0].image}"
        vectors.claim(out, vectors.VectorInfo("f", "joint", "float32", 8, folder, "s"), out)
        hashes = [sample.caption or "c" for sample in samples]
        part = vectors.table(samples, rows[: len(samples)], contents=hashes)
        vectors.write_part(out, "0", part)
        vectors.finish(out, ["0"], [])
        return fill.add_vectors(tmp_path / "g", out)

    assert added("a", image, about, alone).new == 3
    for samples in ([about], [image, about]):
        with pytest.raises(UserError, match=r"1\.jpg#\w+ is known from a, .* from b, "):
            added("b", *samples)
    assert added("b", alone).replaced == 1, "is about no image"
    assert added("b", image).replaced == 1, "was moved"
    assert added("b", about).replaced == 1


def test_a_number_of_several_sources_is_removed_of_one_that_is_named(tmp_path: Path) -> None:
    """Folders of one name show one identity; numbers of manifests are taken as they are."""
    opened = Gallery.create(tmp_path / "g", Facts("f", "descriptor", 16, "/run"))
    for number, root in enumerate(("/monday", "/tuesday")):
        sample = Sample(f"{number}.jpg", Modality.VISIBLE, pid=3)
        opened.add(fill.rows_of([sample], random_rows(1, 16, seed=number), root=root))

    def removed(*options: str) -> str:
        command = ["gallery", "remove", str(tmp_path / "g"), "--pid", "3", *options]
        result = CliRunner().invoke(cli.app, command)
        return " ".join(f"{result.output} {result.exception or ''}".split())

    assert "/monday and /tuesday, whose numbers" in removed()
    assert len(opened) == 2
    assert "1 removed, 1 left" in removed("--root", "/monday")
    assert "1 removed, 0 left" in removed()


def test_vectors_of_an_older_version_number_folders_otherwise(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("0002", "anna"):
        draw_folder(tmp_path / "drawn", visible=1, infrared=0)
        (tmp_path / "i" / "visible").mkdir(parents=True, exist_ok=True)
        (tmp_path / "drawn" / "visible").rename(tmp_path / "i" / "visible" / name)
    out = embed_alone(checkpoint, Source(tmp_path / "i", "folder", "train"), tmp_path / "v")
    older = {key: x for key, x in vectors.read_info(out).items() if key != "folder_pids"}
    (out / vectors.INFO).write_text(json.dumps(older))
    add_vectors(tmp_path / "g", out)
    assert not caplog.messages, "its numbers are those of the names"
    (part,) = vectors.part_files(out)
    rows = pq.read_table(part)
    place = rows.schema.get_field_index("pid")
    pq.write_table(rows.set_column(place, "pid", pa.array([0, 1], pa.int64())), part)
    add_vectors(tmp_path / "h", out)
    assert "older version, which numbered identity 0002 0; now it is 2" in caplog.text


def test_a_name_has_one_identity_however_its_accents_are_coded(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    """Older versions kept them as they were typed."""
    composed, apart = (unicodedata.normalize(form, "Jos\u00e9") for form in ("NFC", "NFD"))
    loaded = open_encoder(checkpoint)
    facts = Facts(loaded.fingerprint, "descriptor", loaded.encoder.feature_dim, str(checkpoint))
    opened = Gallery.create(tmp_path / "g", facts)
    sample = Sample(f"enrolled/{apart}/c", Modality.VISIBLE)
    opened.add(fill.rows_of([sample], random_rows(1, facts.dim, seed=0), root="", name=apart))
    for name in (composed, apart):
        fill.enroll(opened, loaded, name, [folder / "visible" / "0.png"], Modality.VISIBLE)
        assert opened.names() == {apart: 2}
    command = ["gallery", "remove", str(tmp_path / "g"), "--name", composed]
    assert "2 removed" in CliRunner().invoke(cli.app, command).output
