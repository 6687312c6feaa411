"""Embedding: the right vectors in the right rows, again only what is missing, errors by name."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from pipelines import cli
from pipelines.cluster import machine
from pipelines.data.decode import read_image
from pipelines.errors import UserError
from pipelines.evaluation.encoder import LoadedEncoder, open_encoder
from pipelines.retrieval import embedder, vectors
from pipelines.retrieval.devices import Place
from pipelines.retrieval.embed import embed
from pipelines.retrieval.embedder import Embedder
from pipelines.retrieval.sources import Source, parts
from reid_core.datasets import regdb, synthetic
from reid_core.models import backbones
from reid_core.types import Modality
from tests.pipelines.trained import draw_folder, save_run, with_data, work_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("trained"))


def read_vectors(out: Path) -> tuple[list[str], np.ndarray, pa.Table]:
    table = pa.concat_tables([pq.read_table(path) for path in vectors.part_files(out)])
    rows = table["vector"].combine_chunks()
    return table["id"].to_pylist(), np.stack(rows.to_numpy(zero_copy_only=False)), table


def test_an_embedder_takes_no_more_threads_than_its_node_has(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes differ: the share of a large cluster's CPUs may be more than a small one has."""
    work = work_of(checkpoint, tmp_path, tmp_path)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for share, expected in ((9, 2), (1, 1)):
        assert Embedder(work, threads=share)._pool._max_workers == expected
    assert taken == [2, 1]


def test_an_embedder_that_reserved_no_gpu_leaves_them_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray hides none from it, and the GPUs are those of a training."""
    work = work_of(checkpoint, tmp_path, tmp_path)
    opened: list[torch.device | None] = []

    def note(*given: object, device: torch.device | None, **options: Any) -> LoadedEncoder:
        opened.append(device)
        return open_encoder(*given, device=torch.device("cpu"), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(embedder, "open_encoder", note)
    for where in (Place(0, 4), Place(2, 4)):
        Embedder(work, 1, where.device)
    assert opened == [torch.device("cpu"), None]


@pytest.mark.parametrize("model", backbones.BUNDLED)
def test_vectors_are_those_of_the_encoder(
    model: str,
    folder: Path,
    tmp_path: Path,
    in_process: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = save_run(tmp_path / "run", model=model)
    done = embed(checkpoint, Source(folder), tmp_path / "out", dtype="float32", batch_size=3)
    assert re.search(r"12 of 12, [\d,]+ per second, 0 s left", capsys.readouterr().out)
    ids, result, table = read_vectors(tmp_path / "out")
    assert (done.num_vectors, done.num_new, done.unreadable) == (12, 12, ())
    assert sorted(ids) == sorted(sample.image for sample in Source(folder).samples())
    assert table["modality"].to_pylist().count("infrared") == 5
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-5)
    loaded = open_encoder(checkpoint)
    for row in (0, 11):
        image = read_image(folder / ids[row], height=64, width=32)
        modality = Modality(table["modality"][row].as_py())
        alone = loaded.encoder.embed(torch.from_numpy(image[None]), modality)
        np.testing.assert_allclose(result[row], alone[0].numpy(), atol=1e-5)


def test_identities_of_regdb_are_those_of_the_runs_own_trial_or_of_the_one_that_is_named(
    tmp_path: Path, in_process: list[str]
) -> None:
    root, run_dir = tmp_path / "regdb", save_run(tmp_path / "run", kind="regdb", trial=5)
    synthetic.write(root, num_identities=4, seed=1, layout="regdb", height=32)
    for given, trial in ((None, 5), (9, 9)):
        embed(run_dir, Source(root, "regdb", trial=given), tmp_path / str(trial))
        identities = [sample.image for sample in regdb.read(root, trial=trial).test.samples]
        assert read_vectors(tmp_path / str(trial))[0] == identities
    with pytest.raises(UserError, match=r"--trial 9.*only RegDB"):
        Source(root, "folder", trial=9)


def test_a_second_run_embeds_nothing(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    embed(checkpoint, Source(folder), tmp_path / "out")
    in_process.clear()
    again = embed(checkpoint, Source(folder), tmp_path / "out")
    assert in_process == []
    assert (again.num_vectors, again.num_new) == (12, 0)


def test_a_lost_or_half_written_part_is_embedded_again(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    out = tmp_path / "out"
    embed(checkpoint, Source(folder), out)
    (part,) = vectors.part_files(out)
    before = read_vectors(out)[1]
    part.write_bytes(part.read_bytes()[:100])
    assert embed(checkpoint, Source(folder), out).num_new == 12
    np.testing.assert_array_equal(read_vectors(out)[1], before)


def test_images_that_came_and_went(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    out = tmp_path / "out"
    embed(checkpoint, Source(folder), out)
    (folder / "visible" / "0.png").unlink()
    draw_folder(folder, visible=9, infrared=0, first=8)
    done = embed(checkpoint, Source(folder), out)
    ids = read_vectors(out)[0]
    assert sorted(ids) == sorted(sample.image for sample in Source(folder).samples())
    assert done.num_vectors == len(ids) == 12


def test_unreadable_images_are_named_and_left_out(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    (folder / "visible" / "3.png").write_bytes(b"no image")
    done = embed(checkpoint, Source(folder), tmp_path / "out", max_unreadable=0.1)
    assert done.num_vectors == 11
    (message,) = done.unreadable
    assert "visible/3.png" in message
    assert json.loads((tmp_path / "out" / vectors.UNREADABLE).read_text()) == message
    assert "visible/3.png" not in read_vectors(tmp_path / "out")[0]


def test_an_image_that_is_mended_is_embedded_and_those_beside_it_are_not_again(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    in_process: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A storage that failed for a moment looks the same."""
    image, out, read = folder / "visible" / "3.png", tmp_path / "out", list[str]()
    content, read_image = image.read_bytes(), LoadedEncoder.read_image

    def noted(self: LoadedEncoder, path: Path) -> tuple[np.ndarray, bytes]:
        read.append(path.name)
        return read_image(self, path)

    image.write_bytes(b"no image")
    for limit in (0.0, 0.1):
        with contextlib.suppress(UserError):
            done = embed(checkpoint, Source(folder), out, max_unreadable=limit)
    assert (done.num_vectors, done.num_new, len(done.unreadable)) == (11, 0, 1)
    image.write_bytes(content)
    monkeypatch.setattr(LoadedEncoder, "read_image", noted)
    done = embed(checkpoint, Source(folder), out)
    assert (done.num_vectors, done.num_new, done.unreadable) == (12, 1, ())
    assert read == ["3.png"]
    assert sorted(read_vectors(out)[0]) == sorted(s.image for s in Source(folder).samples())
    assert not (out / vectors.UNREADABLE).read_text()


def test_images_may_be_as_large_as_the_run_allows(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    with_data(checkpoint, tmp_path / "run", max_megapixels=0.002)
    with pytest.raises(UserError, match=r"12 images cannot(.|\n)*data\.max_megapixels=0\.002"):
        embed(tmp_path / "run", Source(folder), tmp_path / "out")


def test_too_many_unreadable_images_stop(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    (folder / "visible" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"visible/3\.png(.|\n)*raise the limit"):
        embed(checkpoint, Source(folder), tmp_path / "out", max_unreadable=0.0)
    assert not vectors.read_info(tmp_path / "out")["complete"]


def test_a_folder_of_other_vectors_is_not_mixed(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    embed(checkpoint, Source(folder), tmp_path / "out")
    with pytest.raises(UserError, match="dtype: float16 -> float32"):
        embed(checkpoint, Source(folder), tmp_path / "out", dtype="float32")
    with pytest.raises(UserError, match="is not empty"):
        embed(checkpoint, Source(folder), folder)


def test_an_empty_folder_is_nothing_to_embed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to embed"):
        embed(checkpoint, Source(tmp_path / "empty"), tmp_path / "out")


def test_sentences_need_a_space_that_has_them(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    rows = [
        {"image": "visible/0.png", "modality": "visible", "pid": 4, "camera": 1},
        {"image": "visible/0.png", "modality": "text", "caption": "a man in red", "pid": 4},
        {"image": "visible/0.png", "modality": "text", "caption": "somebody"},
    ]
    manifest = folder / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"text rows.*--space joint"):
        embed(checkpoint, Source(manifest), tmp_path / "out")
    done = embed(checkpoint, Source(manifest), tmp_path / "joint", space="joint")
    ids, _, table = read_vectors(tmp_path / "joint")
    assert done.num_vectors == 3
    assert len(set(ids)) == 3
    assert all(name.startswith("visible/0.png") for name in ids)
    assert table["pid"].to_pylist() == [4, 4, -1]


def test_the_command_says_what_is_new_and_what_was_left_out(
    checkpoint: Path, folder: Path, tmp_path: Path, in_process: list[str]
) -> None:
    (folder / "visible" / "3.png").write_bytes(b"no image")
    command = ["embed", str(checkpoint), str(folder), str(tmp_path / "out"), "--dtype", "float32"]
    command += ["--max-unreadable", "0.1"]
    for new in (11, 0):
        result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
        text = " ".join(result.output.split())
        assert result.exit_code == 0
        assert "left out:" in text
        assert f"11 vectors, {new} of them new in" in text
        assert "1 images left out" in text


@pytest.mark.ray
@pytest.mark.slow
def test_through_ray(
    local_ray: None,
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Actors write what a single process writes."""
    done = embed(checkpoint, Source(folder), tmp_path / "ray", dtype="float32")
    assert done.num_new == 12
    assert re.search(
        r"^embedding on \d CPU cores?: no GPU is there$", capsys.readouterr().out, re.M
    )
    work = work_of(checkpoint, folder, tmp_path / "one")
    (tmp_path / "one").mkdir()
    for part in parts(Source(folder).samples()):
        Embedder(work, threads=1).embed(part)
    ids, result, _ = read_vectors(tmp_path / "ray")
    others, alone, _ = read_vectors(tmp_path / "one")
    assert ids == others
    np.testing.assert_allclose(result, alone, atol=1e-5)
