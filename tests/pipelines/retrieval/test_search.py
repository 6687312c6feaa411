"""Searching: by id, image and sentence; marks of right and wrong; contact sheets."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("lancedb")

from pipelines.errors import UserError
from pipelines.evaluation import calibrated
from pipelines.evaluation.calibrated import Calibrated
from pipelines.evaluation.encoder import Space, open_encoder
from pipelines.retrieval import answer_file, contact_sheet
from pipelines.retrieval.answer_table import table
from pipelines.retrieval.fill import add_vectors, enroll
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter
from pipelines.retrieval.search import (
    Query,
    ask,
    probabilities_of,
    query_by_image,
    query_by_text,
    search,
)
from pipelines.retrieval.sources import Source
from pipelines.runs import checkpoint as checkpoint_files
from pipelines.runs.console import printable
from reid_core.calibration import fit
from reid_core.types import Modality
from tests.pipelines.fake_run import Page
from tests.pipelines.trained import draw_folder, embed_alone, random_rows, save_run


def make_index(root: Path, checkpoint: Path, space: Space) -> Gallery:
    """Six visible and four infrared images of identities 0, 1, 2, 0, ... on cameras 1 and 2."""
    images = draw_folder(root / "images", visible=6, infrared=4)
    lines = ["image,modality,pid,camera"]
    for name, count in (("visible", 6), ("infrared", 4)):
        lines += [f"{name}/{i}.png,{name},{i % 3},{1 + i % 2}" for i in range(count)]
    (images / "list.csv").write_text("\n".join(lines))
    out = embed_alone(checkpoint, Source(images / "list.csv"), root / space, space=space)
    add_vectors(root / f"{space}-gallery", out)
    return Gallery.open(root / f"{space}-gallery")


def images_of(index: Gallery) -> Path:
    """Where the images of a gallery lie."""
    row = index.get("visible/2.png")
    assert row is not None
    return Path(row.root)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def index(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_index(tmp_path_factory.mktemp("index"), checkpoint, "descriptor")


def test_an_image_file_finds_itself_and_an_id_does_not(index: Gallery) -> None:
    image = images_of(index) / "visible" / "2.png"
    asked = ask(index, image=str(image), text=None, seen_as=Modality.VISIBLE)
    (first, *_) = search(index, asked)
    assert first.id == "visible/2.png"
    assert first.similarity == pytest.approx(1, abs=1e-4)
    assert first.right is None, "nobody said who is on the image"
    known = ask(index, image="visible/2.png", text=None, seen_as=None)
    np.testing.assert_allclose(known.vector, asked.vector, atol=1e-5)
    assert "visible/2.png" not in [hit.id for hit in search(index, known)]


def test_right_and_wrong_are_marked_where_both_are_known(index: Gallery) -> None:
    hits = search(index, ask(index, image="infrared/1.png", text=None, seen_as=None))
    assert len(hits) == 9
    assert {hit.id: hit.right for hit in hits} == {hit.id: int(hit.id[-5]) % 3 == 1 for hit in hits}
    similarity = [hit.similarity for hit in hits]
    assert similarity == sorted(similarity, reverse=True)


def test_filters_reach_the_answers(index: Gallery) -> None:
    asked = ask(index, image="infrared/1.png", text=None, seen_as=None)
    hits = search(index, asked, where=Filter(modality=Modality.VISIBLE, cameras=(2,)))
    assert sorted(hit.id for hit in hits) == ["visible/1.png", "visible/3.png", "visible/5.png"]


def test_re_ranking_keeps_the_answers_and_may_change_their_order(index: Gallery) -> None:
    asked = ask(index, image="visible/0.png", text=None, seen_as=None)
    plain, reranked = search(index, asked), search(index, asked, reranked=True)
    assert {hit.id for hit in plain} == {hit.id for hit in reranked}
    assert len(search(index, asked, top=3, reranked=True)) == 3


def test_a_sentence_asks_the_joint_space(
    checkpoint: Path, index: Gallery, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(UserError, match="--space joint"):
        ask(index, image=None, text="a man in red", seen_as=None)
    joint = make_index(tmp_path_factory.mktemp("joint"), checkpoint, "joint")
    asked = ask(joint, image=None, text="a man in red", seen_as=None)
    loaded = open_encoder(checkpoint, space="joint")
    assert loaded.tokenize is not None
    text = loaded.encoder.embed(loaded.tokenize(["a man in red"]), Modality.TEXT)[0].numpy()
    hits = search(joint, asked, top=10)
    names = [hit.id for hit in search(joint, asked, top=10)]
    rows = np.stack([row.vector for name in names if (row := joint.get(name)) is not None])
    assert [hit.similarity for hit in hits] == pytest.approx(
        sorted(rows @ text, reverse=True), abs=1e-4
    )
    with pytest.raises(UserError, match="empty"):
        ask(joint, image=None, text="  ", seen_as=None)


def test_a_search_without_a_calibration_says_so(
    index: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    assert probabilities_of(index, None, None) is None
    assert f"no calibration of this gallery's encoder at {index.facts.checkpoint}" in caplog.text
    with pytest.raises(UserError, match=r"--prior 0\.1 needs a calibration"):
        probabilities_of(index, None, 0.1)


def test_a_calibration_of_an_older_version_is_to_be_fitted_again(
    index: Gallery, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its priors are those of a sample."""
    fitted = fit(np.linspace(-1, 1, 100), np.linspace(-1, 1, 100) > 0)
    known = Calibrated(index.facts.fingerprint, "test", {"visible visible": fitted}, {}, {})
    file = calibrated.save(shutil.copytree(checkpoint, tmp_path / "run"), known)
    assert probabilities_of(index, tmp_path / "run", None) == known
    assert not caplog.messages
    file.write_text(
        json.dumps({k: x for k, x in json.loads(file.read_text()).items() if k != "of_all"})
    )
    assert probabilities_of(index, tmp_path / "run", 0.1) is not None
    assert not caplog.messages, "another prior was asked for"
    assert probabilities_of(index, tmp_path / "run", None) is not None
    assert "run `crossreid calibrate` again" in caplog.text


class TestBadInput:
    def test_a_file_whose_name_is_not_utf8(
        self, index: Gallery, checkpoint: Path, tmp_path: Path
    ) -> None:
        """No table can hold it, nor a terminal show it."""
        image = tmp_path / os.fsdecode(b"caf\xe9.png")
        image.write_bytes((images_of(index) / "visible" / "2.png").read_bytes())
        with pytest.raises(UserError, match=r"caf\\xe9\.png is not UTF-8.*rename it"):
            ask(index, image=str(image), text=None, seen_as=Modality.VISIBLE)
        with pytest.raises(UserError, match=r"caf\\xe9\.png is not UTF-8.*rename it"):
            enroll(index, open_encoder(checkpoint), "Ada", [image], Modality.VISIBLE)
        assert printable(str(image)).endswith("caf\N{REPLACEMENT CHARACTER}.png")

    def test_a_least_probability_that_nothing_says(self, index: Gallery) -> None:
        """Every answer would be left out, as if none were likely."""
        fitted = fit(np.linspace(-1, 1, 100), np.linspace(-1, 1, 100) > 0)
        known = Calibrated("", "test", {"infrared infrared": fitted}, {}, {})
        asked = ask(index, image="visible/2.png", text=None, seen_as=None)
        with pytest.raises(UserError, match="nothing of visible queries"):
            search(index, asked, calibrated=known, min_probability=0.5)

    def test_a_modality_that_the_encoder_never_saw(self, index: Gallery, checkpoint: Path) -> None:
        image = images_of(index) / "visible" / "2.png"
        with pytest.raises(UserError, match="--as text: this encoder embeds images as visible or"):
            ask(index, image=str(image), text=None, seen_as=Modality.TEXT)
        loaded = replace(open_encoder(checkpoint), modalities=(Modality.VISIBLE,))
        with pytest.raises(UserError, match="--as infrared: this encoder embeds images as visible"):
            query_by_image(loaded, image, modality=Modality.INFRARED)

    def test_words_for_a_model_without_words(self, checkpoint: Path) -> None:
        loaded = open_encoder(checkpoint)
        model = loaded.config.model.model_copy(update={"name": "timm/resnet50"})
        without = replace(loaded, config=loaded.config.model_copy(update={"model": model}))
        with pytest.raises(UserError, match="'timm/resnet50' has no text tower"):
            query_by_text(without, "a man in red")

    def test_neither_or_both(self, index: Gallery) -> None:
        with pytest.raises(UserError, match="and not both"):
            ask(index, image=None, text=None, seen_as=None)
        with pytest.raises(UserError, match="and not both"):
            ask(index, image="a", text="b", seen_as=None)

    def test_neither_file_nor_id(self, index: Gallery) -> None:
        with pytest.raises(UserError, match="neither a file nor an id of this gallery"):
            ask(index, image="nobody.jpg", text=None, seen_as=None)

    def test_unknown_modality_of_the_image(self, index: Gallery, tmp_path: Path) -> None:
        Image.new("RGB", (8, 16)).save(tmp_path / "a.png")
        with pytest.raises(UserError, match="--as visible or --as infrared"):
            ask(index, image=str(tmp_path / "a.png"), text=None, seen_as=None)

    def test_no_image(self, index: Gallery, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("no image")
        with pytest.raises(UserError, match=r"a\.png"):
            ask(index, image=str(tmp_path / "a.png"), text=None, seen_as=Modality.VISIBLE)

    def test_other_weights_than_those_of_the_index(self, index: Gallery, tmp_path: Path) -> None:
        saved = checkpoint_files.load(Path(index.facts.checkpoint) / "checkpoint_0")["module"]
        changed = {**saved, "neck.weight": saved["neck.weight"] + 1}
        other = save_run(tmp_path / "other", module=changed)
        image = str(images_of(index) / "visible" / "2.png")
        with pytest.raises(UserError, match="other weights"):
            ask(index, image=image, text=None, seen_as=Modality.VISIBLE, checkpoint=other)

    def test_no_answer_wanted(self, index: Gallery) -> None:
        asked = Query(random_rows(1, index.facts.dim, seed=0)[0], "q", Modality.VISIBLE)
        with pytest.raises(UserError, match="--top 0"):
            search(index, asked, top=0)


def test_a_probability_orders_the_nearest_of_each_modality(index: Gallery) -> None:
    """However much higher the cosines within one of them are."""
    cosines = np.linspace(-1, 1, 400)
    sure, unsure = fit(cosines, cosines > -0.5), fit(cosines, cosines > 0.9999 - 0.005)
    known = Calibrated("", "test", {"visible visible": unsure, "infrared visible": sure}, {}, {})
    asked = ask(index, image="visible/2.png", text=None, seen_as=None)
    hits = search(index, asked, top=4, calibrated=known)
    assert {hit.modality for hit in hits} == {"infrared"}
    assert [hit.similarity for hit in hits] == sorted((h.similarity for h in hits), reverse=True)
    everything = search(index, asked, top=50, calibrated=known)
    assert len({hit.id for hit in everything}) == len(everything) == 9
    with pytest.raises(UserError, match="no row is of camera 7"):
        search(index, asked, where=Filter(cameras=(7,)), calibrated=known)


def test_no_modality_is_left_out_because_it_was_not_calibrated(index: Gallery) -> None:
    """Where one pair of modalities has a probability and the other none, cosines order."""
    cosines = np.linspace(-1, 1, 400)
    known = Calibrated("", "test", {"visible visible": fit(cosines, cosines > -0.5)}, {}, {})
    asked = ask(index, image="visible/2.png", text=None, seen_as=None)
    plain, partly = search(index, asked, top=9), search(index, asked, top=9, calibrated=known)
    assert [hit.id for hit in partly] == [hit.id for hit in plain]
    assert {hit.modality for hit in partly if hit.probability is None} == {"infrared"}
    sure = search(index, asked, top=9, calibrated=known, min_probability=0.01)
    assert {hit.modality for hit in sure} == {"visible"}


def test_rows_are_counted_once_per_modality(
    index: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, counts = type(index._table), []
    counted = table.count_rows
    monkeypatch.setattr(
        table, "count_rows", lambda own, where=None: counts.append(where) or counted(own, where)
    )
    asked = ask(index, image="visible/2.png", text=None, seen_as=None)
    assert len(search(index, asked)) == 9
    assert len(counts) == 1
    search(index, asked, calibrated=Calibrated("", "test", {}, {}, {}))
    assert len(counts) == 1 + len(Modality)


def test_what_is_unlikely_leaves_its_place_to_others_also_when_re_ranked(index: Gallery) -> None:
    """As many answers as were asked for, where so many are likely."""
    cosines = np.linspace(-1, 1, 400)
    sure, unsure = fit(cosines, cosines > -0.99), fit(cosines, cosines > 0.99)
    known = Calibrated("", "test", {"visible visible": unsure, "infrared visible": sure}, {}, {})
    asked = ask(index, image="visible/2.png", text=None, seen_as=None)
    hits = search(index, asked, top=4, calibrated=known, reranked=True, min_probability=0.9)
    assert sorted(hit.id for hit in hits) == [f"infrared/{i}.png" for i in range(4)]


def test_answers_as_files_for_programs(index: Gallery, tmp_path: Path) -> None:
    asked = ask(index, image="infrared/1.png", text=None, seen_as=None)
    hits = [replace(hit, camera=-1) for hit in search(index, asked, top=2)]
    rows = json.loads(answer_file.write(tmp_path / "a.json", asked, hits).read_text())
    assert [row["id"] for row in rows] == [hit.id for hit in hits]
    assert (rows[0]["query"], rows[1]["rank"]) == ("infrared/1.png", 2)
    assert (rows[0]["camera"], rows[0]["time"], rows[0]["probability"]) == (None, None, None)
    with answer_file.write(tmp_path / "a.csv", asked, hits).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [hit.id for hit in hits]
    assert [float(row["similarity"]) for row in table] == [row["similarity"] for row in rows]
    assert table[0]["camera"] == ""
    with pytest.raises(UserError, match="there is no folder"):
        answer_file.check(tmp_path / "no" / "a.csv")


class TestShown:
    def test_table_has_a_line_per_answer(self, index: Gallery) -> None:
        asked = ask(index, image="infrared/1.png", text=None, seen_as=None)
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(table(asked, search(index, asked, top=4)))
        text = console.export_text()
        assert text.count(".png") == 5, "four answers and the query"
        assert "1 ✓" in text or "0 ✗" in text or "2 ✗" in text

    def test_page_marks_answers_by_symbol_and_loads_nothing(
        self, index: Gallery, tmp_path: Path
    ) -> None:
        asked = ask(index, image="infrared/1.png", text=None, seen_as=None)
        hits = search(index, asked)
        path = contact_sheet.write(tmp_path / "sheet.html", asked, hits, note="10 vectors")
        html = path.read_text(encoding="utf-8")
        page = Page(html)
        assert page.open == []
        assert all(source.startswith("data:image/jpeg;base64,") for source in page.values("src"))
        assert len(page.values("src")) == 10
        assert "http" not in html
        assert page.text.count("✓") == sum(bool(hit.right) for hit in hits)
        assert page.says("person 1")

    def test_page_survives_lost_images_and_odd_names(self, index: Gallery, tmp_path: Path) -> None:
        asked = ask(index, image="infrared/1.png", text=None, seen_as=None)
        hits = [replace(hit, image=tmp_path / "gone.jpg", id="<b>") for hit in search(index, asked)]
        odd = replace(asked, name="<script>", image=None)
        html = contact_sheet.write(tmp_path / "a.html", odd, hits, note="n").read_text()
        assert "<script>" not in html
        assert "<b>" not in html
        assert html.count("picture not readable") == len(hits)
        with Image.open(contact_sheet.write(tmp_path / "a.png", odd, hits, note="n")) as sheet:
            assert sheet.width > 640

    def test_another_kind_of_file_is_refused(self, index: Gallery, tmp_path: Path) -> None:
        asked = ask(index, image="infrared/1.png", text=None, seen_as=None)
        with pytest.raises(UserError, match=r"is \.html or \.png"):
            contact_sheet.write(tmp_path / "a.pdf", asked, [], note="n")
        with pytest.raises(UserError, match="cannot write"):
            contact_sheet.write(tmp_path / "no" / "a.html", asked, [], note="n")
