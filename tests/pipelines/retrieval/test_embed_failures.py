"""What becomes of an embedding whose run trains on, whose disk is full, whose nodes see less."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.errors import UserError
from pipelines.evaluation.encoder import describe, open_encoder
from pipelines.retrieval import embed as embedding
from pipelines.retrieval import fill
from pipelines.retrieval.devices import Place
from pipelines.retrieval.embedder import Actor, Embedder, Work
from pipelines.retrieval.gallery import Gallery
from pipelines.retrieval.sources import Source, parts
from pipelines.runs import checkpoint
from tests.pipelines.trained import save_run, work_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run")


def train_on(run: Path, name: str) -> None:
    """Write a checkpoint of other weights."""
    state = checkpoint.load(run / "checkpoint_0")
    state["module"] = {
        key: value * 1.5 if "conv" in key else value for key, value in state["module"].items()
    }
    checkpoint.save(run / name, state, {})


@pytest.fixture
def trains_on(run: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another checkpoint comes before the actors open theirs."""
    embeds = embedding._run

    def later(
        work: Work, source: Source, missing: frozenset[str], where: Place
    ) -> Iterator[dict[str, object]]:
        train_on(run, "checkpoint_1")
        yield from embeds(work, source, missing, where)

    monkeypatch.setattr(embedding, "_run", later)


def test_vectors_are_of_the_weights_that_they_are_said_to_be_of(
    run: Path, folder: Path, tmp_path: Path, trains_on: None
) -> None:
    image = folder / "visible" / "0.png"
    before = open_encoder(run).embed_images([image], "visible")[0]
    fill.add_images(tmp_path / "gallery", run, Source(folder))
    assert describe(run).fingerprints != describe(run / "checkpoint_0").fingerprints
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.facts.fingerprint == describe(run / "checkpoint_0").fingerprints["descriptor"]
    row = gallery.get("visible/0.png")
    assert row is not None
    assert row.vector is not None
    np.testing.assert_allclose(row.vector, before, atol=1e-5)


def test_an_actor_that_meets_other_weights_embeds_nothing(run: Path, tmp_path: Path) -> None:
    work = work_of(run, tmp_path, tmp_path)
    train_on(run, "checkpoint_0")
    with pytest.raises(UserError, match=r"other weights.*name a checkpoint folder"):
        Embedder(work, threads=1)
    (refused,) = Actor(work, 1)({"part": np.empty(0, object)})["refused"]
    assert "other weights" in str(refused)
    shutil.rmtree(run)
    with pytest.raises(UserError, match=r"no checkpoint in .*every machine must see"):
        Embedder(work, threads=1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "part-.*No space left.*disk has room"),
        (torch.OutOfMemoryError("CUDA out of memory"), "smaller --batch-size"),
        (UserError("what is wrong"), "what is wrong"),
    ],
    ids=["disk", "GPU", "message"],
)
def test_what_an_actor_meets_is_said_in_words(
    run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    part = next(parts(Source(folder).samples()))
    block = {"part": np.array([pickle.dumps(part)], dtype=object)}
    actor = Actor(work_of(run, folder, tmp_path), 1)

    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(pq, "write_table", fail)
    result = actor(block)
    assert result["embedded"] == [0]
    with pytest.raises(UserError, match=said):
        raise UserError(result["refused"][0])


def test_a_fault_of_ours_stays_one(run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        Actor(work_of(run, folder, tmp_path), 1)({"part": np.array([b"?"], dtype=object)})


@pytest.mark.ray
@pytest.mark.slow
def test_through_ray_the_message_arrives(
    local_ray: None, run: Path, folder: Path, tmp_path: Path
) -> None:
    keys = frozenset(part.key for part in parts(Source(folder).samples()))
    work = work_of(run, folder, tmp_path)
    elsewhere = replace(work, checkpoint=tmp_path / "not there")
    with pytest.raises(UserError, match=r"no checkpoint in .*not there.*every machine"):
        list(embedding._run(elsewhere, Source(folder), keys, Place(0, 1)))
    with pytest.raises(UserError, match=r"part-.*No such file"):
        list(embedding._run(replace(work, out=tmp_path / "x"), Source(folder), keys, Place(0, 1)))
    source = Source(folder)
    shutil.rmtree(folder / "visible")
    (folder / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^\S*0.png: its modality is not known"):
        list(embedding._run(work, source, keys, Place(0, 1)))
