"""Scores of a split: every protocol, mirrored and re-ranked apart, in blocks of queries."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

from pipelines import cli
from pipelines.config.run import RunConfig
from pipelines.data.inputs import Inputs
from pipelines.data.sample_list import rows_of
from pipelines.errors import UserError
from pipelines.evaluation import checkpoint as measuring
from pipelines.evaluation import measured_data
from pipelines.evaluation.encoder import LoadedEncoder
from pipelines.evaluation.evaluate import evaluate, score_table
from pipelines.runs.learned import Learned
from reid_core import protocols
from reid_core.datasets import LAYOUTS, regdb, synthetic, sysu
from reid_core.reranking import rerank
from reid_core.types import Modality, Sample, Split
from tests.oracles import retrieval

CAPTIONS = "cuhk/all/text_to_image"


def unit_rows(num: int, *, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, 6)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def identities(tree: Path) -> Split:
    return sysu.read(tree).test


@pytest.fixture
def captions() -> Split:
    """Twelve images of four identities, one caption each."""
    images = [Sample(f"{i}.jpg", Modality.VISIBLE, i % 4) for i in range(12)]
    texts = [Sample(f"{i}.jpg", Modality.TEXT, i % 4, -1, "a person") for i in range(12)]
    return Split(tuple(images + texts))


class TestBlocksOfQueries:
    @pytest.mark.parametrize("kind", ["sysu", "llcm", "regdb"])
    def test_do_not_change_scores(
        self, identities: Split, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        rows = unit_rows(len(identities))
        whole = evaluate(kind, identities, rows)
        monkeypatch.setattr(protocols, "_QUERIES_AT_ONCE", 7)
        parts = evaluate(kind, identities, rows)
        assert parts.table.keys() == whole.table.keys()
        for name, row in whole.table.items():
            assert parts.table[name]["mean"] == pytest.approx(row["mean"], abs=1e-3)
            assert parts.table[name]["num_valid_queries"] == row["num_valid_queries"]
        np.testing.assert_allclose(parts.details["ap"], whole.details["ap"], atol=1e-9)

    def test_a_block_without_a_valid_query_counts_for_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only query 3 has its identity in the gallery, at rank 1."""
        rows = np.eye(6, dtype=np.float32)
        trial = protocols.Trial("x", 0, np.arange(4), np.array([3, 4, 5]), None, "image")
        pids = np.array([0, 1, 2, 3, 4, 5])
        monkeypatch.setattr(protocols, "_QUERIES_AT_ONCE", 2)
        result = protocols.score(rows, pids, trial)
        assert (result.mAP, result.mINP, result.num_valid_queries) == (1.0, 1.0, 1)
        assert result.num_invalid_queries == 3
        np.testing.assert_array_equal(result.cmc, 1.0)
        nobody = protocols.Trial("x", 0, np.arange(3), np.array([4, 5]), None, "image")
        assert np.isnan(protocols.score(rows, pids, nobody).mAP)

    def test_no_matrix_of_all_pairs_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def similarity(block: slice) -> np.ndarray:
            asked.append(block.stop - block.start)
            return np.zeros((asked[-1], 3), dtype=np.float32)

        trial = protocols.Trial("x", 0, np.zeros(9000, np.int64), np.arange(3), None, "image")
        protocols.score_similarity(similarity, np.arange(3), trial)
        assert asked == [4096, 4096, 808]


def test_queries_without_a_right_answer_are_told() -> None:
    """A mean over one query of three looks like one over three."""

    def shown(pids: tuple[int, ...]) -> str:
        samples = [Sample(f"v{pid}.jpg", Modality.VISIBLE, pid) for pid in (0, 1, 2)]
        samples += [Sample(f"i{i}.jpg", Modality.INFRARED, pid) for i, pid in enumerate(pids)]
        result = evaluate("folder", Split(tuple(samples)), unit_rows(6))
        console = Console(width=150, record=True, file=io.StringIO())
        console.print(score_table(result))
        return console.export_text()

    some = shown((0, 7, 8))
    assert "queries" in some
    assert "1 of 3" in some
    assert "queries" not in shown((0, 1, 2))


def test_similarities_are_counted_per_pair_of_modalities() -> None:
    """Identities 0 and 1 by hand; a row is not compared with itself, nor with nobody."""
    visible = [Sample(f"v{i}.jpg", Modality.VISIBLE, pid) for i, pid in enumerate((0, 0, 1, -1))]
    infrared = [Sample(f"i{i}.jpg", Modality.INFRARED, pid) for i, pid in enumerate((0, 1))]
    rows = np.eye(2, dtype=np.float32)[[0, 0, 1, 1, 0, 0]]
    result = evaluate("folder", Split(tuple(visible + infrared)), rows).details
    assert result["pairs"].tolist() == ["infrared visible", "infrared infrared", "visible visible"]
    zero, one = 40, 79  # bins
    same, different = result["same_hist"], result["different_hist"]
    assert (same[0, one], same[0, zero]) == (2, 1), "i0 finds v0 and v1, i1 misses v2"
    assert (different[0, one], different[0, zero]) == (2, 3)
    assert (same[1].sum(), different[1, one]) == (0, 1), "two identities that look alike"
    assert (same[2, one], different[2, zero]) == (1, 2)
    assert (same.sum(), different.sum()) == (4, 8)


class TestMirroredAndReRanked:
    @pytest.mark.slow
    def test_stand_apart_and_leave_the_plain_scores_alone(self, identities: Split) -> None:
        rows, mirrored = unit_rows(len(identities)), unit_rows(len(identities), seed=1)
        plain = evaluate("sysu", identities, rows)
        both = evaluate("sysu", identities, rows, mirrored=mirrored, reranked=True)
        names = list(plain.table)
        assert list(both.table) == [
            name + suffix for suffix in ("", "+flip", "+rerank", "+flip+rerank") for name in names
        ]
        assert {name: both.table[name] for name in names} == plain.table
        assert (both.headline, both.chance) == (plain.headline, plain.chance)
        for name, result in plain.details.items():
            np.testing.assert_array_equal(both.details[name], result)

    def test_mirrored_scores_are_those_of_the_mean_direction(self, captions: Split) -> None:
        rows, mirrored = unit_rows(24), unit_rows(24, seed=1)
        mean = rows + mirrored
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        result = evaluate("cuhk", captions, rows, mirrored=mirrored).table[f"{CAPTIONS}+flip"]
        assert result["mean"] == pytest.approx(
            evaluate("cuhk", captions, mean).table[CAPTIONS]["mean"], abs=1e-3
        )

    def test_re_ranked_scores_are_those_of_the_re_ranked_distances(self, captions: Split) -> None:
        rows = unit_rows(24)
        result = evaluate("cuhk", captions, rows, reranked=True).table[f"{CAPTIONS}+rerank"]
        pids = np.arange(12) % 4
        curve, aps, _ = retrieval(
            -rerank(rows[12:], rows[:12]),
            pids,
            pids,
            np.zeros((12, 12), dtype=bool),
            by_identity=False,
            max_rank=10,
        )
        assert result["mean"]["rank1"] == pytest.approx(100 * curve[0], abs=1e-3)
        assert result["mean"]["mAP"] == pytest.approx(100 * np.mean(aps), abs=1e-3)


class Halves:
    """Describes an image by the brightness of its left and of its right half."""

    feature_dim = 2

    def embed(self, inputs: Tensor, modality: Modality) -> Tensor:
        halves = inputs.float().unflatten(3, (2, -1)).mean(dim=(1, 2, 4))
        return functional.normalize(halves, dim=1)


def opened(config: RunConfig) -> LoadedEncoder:
    """What a checkpoint of `Halves` would open as."""
    return LoadedEncoder(
        encoder=Halves(),
        modalities=(Modality.VISIBLE, Modality.INFRARED),
        tokenize=None,
        config=config,
        device=torch.device("cpu"),
        fingerprint="halves",
        learned=Learned(),
    )


@pytest.fixture
def loaded(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`open_encoder` finds `Halves`; the list receives the number of images of every read."""
    result = opened(make_config())
    monkeypatch.setattr(measuring, "open_encoder", lambda path: result)
    monkeypatch.setattr(measured_data, "rows_of_checkpoint", lambda path: [])
    reads: list[int] = []
    read = Inputs.read

    def counting(self: Inputs, modality: Modality, rows: np.ndarray) -> np.ndarray:
        reads.append(len(rows))
        return read(self, modality, rows)

    monkeypatch.setattr(Inputs, "read", counting)
    return reads


Opens = Callable[[RunConfig], None]


@pytest.fixture
def opens(loaded: list[int], monkeypatch: pytest.MonkeyPatch) -> Opens:
    """Makes `open_encoder` find `Halves` of a run with another configuration."""
    return lambda config: monkeypatch.setattr(measuring, "open_encoder", lambda _: opened(config))


@pytest.mark.slow
def test_the_command_reads_every_image_once(
    loaded: list[int], identities: Split, tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    command = ["eval", "anything", "--root", str(tree), "--flip", "--rerank", "--json", str(out)]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert sum(loaded) == len(identities)
    scores = json.loads(out.read_text())
    names = {trial.name for trial in LAYOUTS["sysu"].protocol(identities)}
    endings = ("", "+flip", "+rerank", "+flip+rerank")
    assert scores.keys() == {name + suffix for name in names for suffix in endings}
    # an image and its mirror image together are alike on both sides: nothing tells identities apart
    assert (
        scores[LAYOUTS["sysu"].headline]["mean"]
        != scores[f"{LAYOUTS['sysu'].headline}+flip"]["mean"]
    )
    plain = tmp_path / "plain.json"
    command = ["eval", "anything", "--root", str(tree), "--json", str(plain)]
    assert CliRunner().invoke(cli.app, command, catch_exceptions=False).exit_code == 0
    assert json.loads(plain.read_text()) == {name: scores[name] for name in names}


def test_identities_of_regdb_are_those_of_the_runs_own_trial_or_of_the_one_that_is_named(
    opens: Opens, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    synthetic.write(tmp_path, num_identities=4, seed=1, layout="regdb", height=32)
    opens(make_config("data.kind=regdb", "data.trial=5", root=tmp_path))
    for given, trial in ((None, 5), (9, 9)):
        result = measuring.evaluate_checkpoint(tmp_path, trial=given)
        identities = regdb.read(tmp_path, trial=trial).test
        images = {
            sample.image for sample in identities.take(identities.rows(Modality.VISIBLE)).samples
        }
        assert images in (set(result.details[f"{side}_images"]) for side in ("query", "gallery"))
    with pytest.raises(UserError, match="--trial 9: folder has no divisions"):
        measuring.evaluate_checkpoint(tmp_path, kind="folder", trial=9)


def test_images_that_were_trained_on_are_not_measured(
    opens: Opens,
    make_config: Callable[..., RunConfig],
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another division of RegDB, or validation identities that were trained on too."""
    synthetic.write(tmp_path, num_identities=4, seed=1, layout="regdb", height=32)
    opens(make_config("data.kind=regdb", "data.trial=5", root=tmp_path))
    trained = {"regdb": regdb.read(tmp_path, trial=5).train, "sysu": sysu.read(tree).val}
    monkeypatch.setattr(measured_data, "rows_of_checkpoint", lambda path: rows_of(trained["regdb"]))
    with pytest.raises(UserError, match=r"measured rows, as \S*Thermal\S*, are rows that this run"):
        measuring.evaluate_checkpoint(tmp_path, trial=9)
    measuring.evaluate_checkpoint(tmp_path)
    monkeypatch.setattr(measured_data, "rows_of_checkpoint", lambda path: rows_of(trained["sysu"]))
    assert not caplog.records
    measuring.evaluate_checkpoint(tmp_path, kind="sysu", root=tree, split="val")
    assert "are called as rows that this run was trained on" in caplog.text, (
        "it may be another tree"
    )


def test_images_that_cannot_be_read_are_left_out_as_in_training(
    opens: Opens,
    make_config: Callable[..., RunConfig],
    tree: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    victim = sysu.read(root).test.samples[3].image
    (root / victim).write_bytes(b"none")
    opens(make_config("data.max_unreadable=0.5", root=root))
    result = measuring.evaluate_checkpoint(tmp_path)
    assert f"left out: {root / victim}" in caplog.text
    assert all(np.isfinite(list(result.headline.values())))
    opens(make_config("data.max_unreadable=0", root=root))
    with pytest.raises(UserError, match="1 images cannot be read"):
        measuring.evaluate_checkpoint(tmp_path)
