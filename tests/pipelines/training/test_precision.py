"""Steps in bfloat16 or through the compiler: losses near the plain ones, float32 state."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipelines.runs import runlog
from pipelines.training import deterministic
from tests.pipelines import small_runs


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("precision")
    small_runs.write_trees(root)
    return root


def losses_of(
    method: str, setting: str, trees: Path, folder: Path, *others: str
) -> dict[str, float]:
    """Losses of the first epoch."""
    config = small_runs.make_config(method, trees, setting, *others)
    remaining = small_runs.Kept(folder / "kept")
    run = small_runs.open_run(config, folder)
    deterministic.train(run.job, run.bank, run.batches, remaining, device=small_runs.CPU)
    for name, x in remaining.states[-1]["epoch"].items():
        assert x.dtype in (torch.float32, torch.int64), name
    assert all(x.dtype != torch.bfloat16 for x in remaining.states[-1]["module"].values())
    return next(runlog.read_metrics(folder))["losses"]


_MOVED = ("bmil", "bmil-vit", "cclnet-vit")  # another cluster is another loss, not rounding


@pytest.mark.slow
@pytest.mark.parametrize("family", ["", "-vit"])
@pytest.mark.parametrize("method", ["cclnet", "bmil", "csdn", "cpcl"])
def test_bfloat16_changes_the_rounding_only(
    method: str, family: str, trees: Path, tmp_path: Path
) -> None:
    # clusters of so few images are others for the least change of a feature
    given = [f"{method}.labels=identities"] if method + family in _MOVED else []
    method += family
    full = losses_of(method, "trainer.precision=fp32", trees, tmp_path / "full", *given)
    half = losses_of(method, "trainer.precision=bf16", trees, tmp_path / "half", *given)
    assert half == pytest.approx(full, rel=0.1, abs=0.05)


@pytest.mark.slow
def test_a_compiled_model_takes_the_same_steps(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by the compiler; the code that it would write is torch's affair."""
    compiled: list[torch.nn.Module] = []

    def trace(module: torch.nn.Module, mode: str | None = None) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    plain = losses_of("cclnet", "trainer.compile=false", trees, tmp_path / "plain")
    assert not compiled
    fused = losses_of("cclnet", "trainer.compile=true", trees, tmp_path / "fused")
    assert compiled
    assert fused == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_generated_code_gives_the_same_losses(trees: Path, tmp_path: Path) -> None:
    """In every stage, in its first epoch; later ones see features that rounded otherwise."""
    plain, fused = (
        first_losses("cclnet", setting, trees, tmp_path / setting)
        for setting in ("trainer.compile=false", "trainer.compile=true")
    )
    assert plain.keys() == fused.keys()
    for stage, losses in plain.items():
        assert fused[stage] == pytest.approx(losses, rel=1e-4), stage


def first_losses(
    method: str, setting: str, trees: Path, folder: Path
) -> dict[str, dict[str, float]]:
    """Losses of the first epoch of every stage."""
    config = small_runs.make_config(method, trees, setting)
    run = small_runs.open_run(config, folder)
    deterministic.train(run.job, run.bank, run.batches, lambda *_: None, device=small_runs.CPU)
    lines = runlog.read_metrics(folder)
    return {line["stage"]: line["losses"] for line in lines if line["epoch"] == 0}
