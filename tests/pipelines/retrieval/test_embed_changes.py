"""Embedding a source that changes meanwhile: what is marked complete holds every image once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.cluster.preflight import NotSharedError
from pipelines.errors import UserError
from pipelines.retrieval import additions, fill, missing, vectors
from pipelines.retrieval import embed as embedding
from pipelines.retrieval.devices import Place
from pipelines.retrieval.embed import embed
from pipelines.retrieval.embedder import Work
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.sources import Source
from pipelines.retrieval.vectors import VectorInfo
from pipelines.storage import lock
from tests.pipelines.trained import draw_folder, save_run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("trained"))


def ids_of(out: Path) -> list[str]:
    return [
        name for path in vectors.part_files(out) for name in pq.read_table(path)["id"].to_pylist()
    ]


class TestChangesMeanwhile:
    """Images come and go between the survey and the task of Ray, which lists them again."""

    @pytest.fixture
    def meanwhile(
        self, in_process: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> list[Callable[[], object]]:
        """One of these happens before each pass of the actors."""
        changes: list[Callable[[], object]] = []
        run = embedding._run

        def after_a_change(
            work: Work, source: Source, missing: frozenset[str], where: Place
        ) -> Iterator[dict]:
            if changes:
                changes.pop(0)()
            return run(work, source, missing, where)

        monkeypatch.setattr(embedding, "_run", after_a_change)
        return changes

    def test_what_came_and_went_is_in_the_folder_as_it_is_now(
        self,
        checkpoint: Path,
        folder: Path,
        tmp_path: Path,
        meanwhile: list[Callable[[], object]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        meanwhile.append(lambda: draw_folder(folder, visible=9, infrared=0, first=8))
        meanwhile.append((folder / "visible" / "0.png").unlink)
        out = tmp_path / "out"
        done = embed(checkpoint, Source(folder), out)
        ids = ids_of(out)
        assert sorted(ids) == sorted(sample.image for sample in Source(folder).samples())
        assert done.num_vectors == len(ids) == 12
        info = vectors.read_info(out)
        assert (info["complete"], info["num_vectors"]) == (True, 12)
        assert caplog.text.count("has changed while it was embedded") == 2

    def test_a_source_that_never_rests_leaves_no_folder_that_claims_to_be_complete(
        self,
        checkpoint: Path,
        folder: Path,
        tmp_path: Path,
        meanwhile: list[Callable[[], object]],
    ) -> None:
        for number in range(100, 110):
            meanwhile.append(
                partial(draw_folder, folder, visible=number + 1, infrared=0, first=number)
            )
        with pytest.raises(UserError, match=r"has changed 5 times(.|\n)*when nothing is written"):
            embed(checkpoint, Source(folder), tmp_path / "out")
        assert not vectors.read_info(tmp_path / "out")["complete"]
        meanwhile.clear()
        assert embed(checkpoint, Source(folder), tmp_path / "out").num_vectors == 17

    def test_images_for_a_gallery_that_are_gone_before_they_are_embedded(
        self,
        checkpoint: Path,
        folder: Path,
        tmp_path: Path,
        meanwhile: list[Callable[[], object]],
    ) -> None:
        meanwhile.append((folder / "visible" / "0.png").unlink)
        done = fill.add_images(tmp_path / "gallery", checkpoint, Source(folder))
        assert (done.new, done.total) == (11, 11)
        assert set(missing._states(Gallery.open(tmp_path / "gallery"))) == {
            sample.image for sample in Source(folder).samples()
        }


def test_a_folder_without_one_of_its_parts_is_not_complete(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    out = tmp_path / "out"
    embed(checkpoint, Source(folder), out)
    vectors.describe(out, VectorInfo("f", "descriptor", "float16", 8, "r", "s"), checkpoint)
    with pytest.raises(UserError, match=r"part-other\.parquet is not there"):
        vectors.finish(out, [*in_process, "other"], [])
    assert not vectors.read_info(out)["complete"]


def test_two_processes_do_not_embed_into_one_folder(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    """Neither removes what the other one writes; what a killed one left half goes."""
    out = tmp_path / "out"
    half = out / f".part-0.parquet.{'a' * 12}.partial"
    embed(checkpoint, Source(folder), out)
    half.touch()
    with lock.held(out), pytest.raises(UserError, match=r"another process embeds in .*out"):
        embed(checkpoint, Source(folder), out)
    assert half.exists()
    embed(checkpoint, Source(folder), out)
    assert not half.exists()


def test_rows_that_a_manifest_lists_twice_are_counted_as_they_are_stored(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    in_process: list[str],
    small_parts: None,
) -> None:
    """Parts of the same rows are one file."""
    lines = ["image,modality", *["visible/0.png,visible"] * 16]
    (folder / "list.csv").write_text("\n".join(lines))
    done = embed(checkpoint, Source(folder / "list.csv"), tmp_path / "out")
    assert done.num_vectors == done.num_new == len(ids_of(tmp_path / "out")) < 16


def test_several_machines_that_embed_for_a_gallery_without_a_folder(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder in between is none that the user named: what to do is said with what was."""

    def embed_nowhere(*_: object, **__: object) -> None:
        raise NotSharedError("/home/x is not the same folder on 10.0.0.2", ("10.0.0.2",))

    monkeypatch.setattr(fill, "embed", embed_nowhere)
    monkeypatch.setenv("HOME", str(tmp_path))
    uri = f"file://{tmp_path}/gallery"
    with pytest.raises(UserError) as refused:
        fill.add_images(uri, checkpoint, Source(folder))
    said = str(refused.value)
    assert "not the same on 10.0.0.2" in said
    assert f"`crossreid embed {checkpoint} {folder} VECTORS`, with VECTORS on a shared" in said
    assert f"`crossreid gallery add {uri} VECTORS`" in said
    with pytest.raises(NotSharedError, match="is not the same folder on"):
        fill.add_images(tmp_path / "own", checkpoint, Source(folder))


def test_an_addition_goes_on_in_its_folder_when_images_have_come_since(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    in_process: list[str],
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was embedded before the interruption is not embedded again, and no folder stays."""
    add, gallery = fill.add_vectors, tmp_path / "gallery"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fill, "add_vectors", killed)
    with pytest.raises(KeyboardInterrupt):
        fill.add_images(gallery, checkpoint, Source(folder))
    before = set(in_process)
    assert len(before) > 3
    in_process.clear()
    monkeypatch.setattr(fill, "add_vectors", add)
    draw_folder(folder, visible=9, infrared=0, first=8)
    assert fill.add_images(gallery, checkpoint, Source(folder)).total == 13
    assert not before & set(in_process)
    assert len(in_process) < len(before)
    assert not list(gallery.glob(".adding-*"))
    one, other = gallery / ".adding-one", gallery / ".adding-other"
    with additions.held([one, other]) as first, additions.held([one, other]) as second:
        assert (first, second) == (one, other)
        with (
            pytest.raises(UserError, match="another process adds the same images"),
            additions.held([one, other]),
        ):
            pass
        assert not additions.remove_abandoned_additions(gallery)
    assert not list(gallery.glob("*.lock"))
