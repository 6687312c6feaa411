"""Every method takes its steps in bfloat16: finite losses near those of float32, float32 state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines import loop, runlog
from tests.pipelines import small_runs


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("precision")
    small_runs.write_trees(root)
    return root


def losses_of(method: str, precision: str, trees: Path, folder: Path) -> dict[str, float]:
    """Losses of the first epoch."""
    config = small_runs.make_config(method, trees, f"trainer.precision={precision}")
    kept = small_runs.Kept(folder / "kept")
    run = small_runs.open_run(config, folder)
    loop.train(run.job, run.bank, run.batches, kept, device=small_runs.CPU)
    for name, x in kept.states[-1]["epoch"].items():
        assert x.dtype in (torch.float32, torch.int64), name
    assert all(x.dtype != torch.bfloat16 for x in kept.states[-1]["module"].values())
    return next(runlog.read_metrics(folder))["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cclnet", "csdn", "cpcl"])
def test_bfloat16_changes_the_rounding_only(method: str, trees: Path, tmp_path: Path) -> None:
    full = losses_of(method, "fp32", trees, tmp_path / "full")
    half = losses_of(method, "bf16", trees, tmp_path / "half")
    assert half == pytest.approx(full, rel=0.1, abs=0.05)
