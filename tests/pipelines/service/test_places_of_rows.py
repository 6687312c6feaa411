"""Rows whose images lie beside their root, or nowhere: searches answer, and name no place."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("lancedb")

from pipelines.data.places import Trusted
from pipelines.errors import UserError
from pipelines.retrieval import fill
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.gallery_rows import Filter, NoRowsError
from pipelines.retrieval.sources import Source
from pipelines.service.desk import Desk, RefusedError
from reid_core.types import Modality, Sample
from tests.pipelines.trained import draw_folder, embed_alone, save_run


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Images of a manifest, one of them in a folder of `data.extra_roots`."""
    root = tmp_path_factory.mktemp("places")
    run, images = save_run(root / "run"), draw_folder(root / "images", visible=3, infrared=1)
    outside = draw_folder(root / "outside", visible=4, infrared=0, first=3)
    names = [f"visible/{i}.png" for i in range(3)] + ["../outside/visible/3.png"]
    lines = ["image,modality", *(f"{name},visible" for name in names)]
    (images / "list.csv").write_text("\n".join(lines))
    source = Source(images / "list.csv", trusted=Trusted((outside,)))
    fill.add_vectors(root / "gallery", embed_alone(run, source, root / "vectors"))
    return Gallery.open(root / "gallery")


@pytest.fixture
def desk(gallery: Gallery) -> Desk:
    return Desk(gallery, calibrated=None, modalities=(Modality.VISIBLE,), size=(64, 32))


def test_an_image_of_an_extra_root_is_found_and_shown(gallery: Gallery, desk: Desk) -> None:
    answers = desk.search(desk.known("visible/0.png"), top=10, where=Filter())
    assert len(answers) == 3
    (beside,) = [answer for answer in answers if answer.id.endswith("/3.png")]
    assert beside.thumbnail is not None
    assert not any("outside" in answer.id for answer in answers)
    assert len(desk.search(desk.known(beside.id), top=10, where=Filter())) == 3


def test_a_row_that_leads_out_of_its_root_is_an_answer_without_an_image(
    gallery: Gallery, desk: Desk
) -> None:
    """As galleries of older versions hold them."""
    row = gallery.get("visible/0.png")
    assert row is not None
    assert row.vector is not None
    sample = Sample("../outside/visible/3.png", Modality.VISIBLE)
    gallery.add(fill.rows_of([sample], row.vector[None], root=row.root))
    try:
        answers = desk.search(desk.known("visible/0.png"), top=10, where=Filter())
        assert [answer.thumbnail is None for answer in answers] == [True, False, False, False]
        assert desk.known(answers[0].id).image is None
    finally:
        gallery.remove(ids=[sample.image])


def test_what_the_database_says_is_for_the_log(
    gallery: Gallery, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    query = replace(desk.known("visible/0.png"), id="")

    def fails(self: Gallery, *_: object, **__: object) -> None:
        raise UserError("the gallery cannot be read: no file /srv/gallery/data/1.lance")

    for method in ("search", "get"):
        monkeypatch.setattr(Gallery, method, fails)
    for ask in (lambda: desk.search(query, top=1, where=Filter()), lambda: desk.known("x")):
        caplog.clear()
        with pytest.raises(RefusedError, match="cannot be searched now") as refused:
            ask()
        assert "/srv" not in str(refused.value)
        assert "/srv/gallery/data/1.lance" in caplog.text

    def nothing(self: Gallery, *_: object, **__: object) -> None:
        raise NoRowsError("no row is of camera 77")

    monkeypatch.setattr(Gallery, "search", nothing)
    with pytest.raises(RefusedError, match="of camera 77"):
        desk.search(query, top=1, where=Filter())
