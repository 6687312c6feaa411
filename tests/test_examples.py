"""The examples run as a reader would run them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from reid_core.datasets import synthetic

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clustering_ones_own_features(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cluster_your_features.py"])
    runpy.run_path(str(EXAMPLES / "cluster_your_features.py"))
    assert "60 clusters" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.night
def test_cclnet_in_one_file() -> None:
    lines = run("cclnet.py", "--tiny").splitlines()
    assert [line.split(":")[0] for line in lines if "Rank-1" in line] == [
        "start",
        "stage 0",
        "stage 2",
    ]


@pytest.mark.slow
@pytest.mark.night
def test_train_embed_search_without_ray(tmp_path: Path) -> None:
    assert "is most like" in run("train_embed_search.py", str(tmp_path), "--local")


@pytest.mark.slow
@pytest.mark.night
@pytest.mark.ray
def test_a_sweep(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "tree", num_identities=60, seed=0)
    few = ["cclnet.align.epochs=1", "cclnet.align.batches_per_epoch=3", "cclnet.prompts.epochs=1"]
    few += ["cclnet.prepare.epochs=1", "cclnet.prepare.batches_per_epoch=3"]
    printed = run("sweep.py", str(tmp_path / "tree"), str(tmp_path / "sweep"), *few)
    assert "best:" in printed
