"""Steps in bfloat16 or through the compiler: losses near the plain ones, float32 state."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.runs import runlog
from pipelines.runs.records import EpochLine, State
from pipelines.training import deterministic
from pipelines.training.embedding import Embedding
from pipelines.training.opening import Opener
from tests.pipelines import small_runs


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


@pytest.mark.parametrize("method", ["cclnet", "cclnet-vit", "cclnet-ours", "bmil", "csdn", "cpcl"])
def test_rows_embedded_in_bfloat16_are_float32_and_of_unit_length(
    method: str, trees: Path, tmp_path: Path
) -> None:
    """Their directions are rounded, their lengths are not: a cosine is at most one."""
    rows: dict[str, list[torch.Tensor]] = {}
    for precision in ("bf16", "fp32"):
        config = small_runs.make_config(method, trees, f"trainer.precision={precision}")
        job = small_runs.open_run(config, tmp_path / precision).job
        encoder = Opener(job, small_runs.CPU).encoder_before_training()
        embedding = Embedding(config, small_runs.CPU)
        head = embedding.to_embed(encoder).embed
        rows[precision] = [embedding.share(head, job.train, m) for m in job.method.inputs]
    for half, full in zip(rows["bf16"], rows["fp32"], strict=True):
        assert half.dtype == torch.float32
        assert (half.double().norm(dim=1) - 1).abs().max() < 1e-6
        assert 1e-4 < (half - full).abs().max() < 0.1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
@pytest.mark.parametrize(
    "method",
    ["cclnet", *(pytest.param(m, marks=pytest.mark.night) for m in ("bmil", "csdn", "cpcl"))],
)
def test_generated_code_gives_the_same_losses(method: str, trees: Path, tmp_path: Path) -> None:
    """In the first epoch of every stage, each from the state that the plain run came to."""
    # AdamW's first steps have one length, so rounding turns those of gradients near zero around
    given = ["bmil.joint.lr=1e-6"] if method == "bmil" else []
    plain, states = first_epochs(method, trees, tmp_path / "plain", *given)
    given.append("trainer.compile=true")
    fused, _ = first_epochs(method, trees, tmp_path, *given, starts=states)
    assert plain.keys() == fused.keys()
    for stage, line in plain.items():
        assert fused[stage]["losses"] == pytest.approx(line["losses"], rel=1e-4), stage
        assert line["speed"]["flops_per_step"]
        flops = pytest.approx(line["speed"]["flops_per_step"], rel=0.01)
        assert fused[stage]["speed"]["flops_per_step"] == flops, stage


class EnoughError(Exception):
    """Ends a run that goes on from a state after one epoch."""


def first_epochs(
    method: str,
    trees: Path,
    folder: Path,
    *overrides: str,
    starts: list[State | None] | None = None,
) -> tuple[dict[str, EpochLine], list[State | None]]:
    """What is logged of the first epoch of every stage, and the states before them.

    Args:
        starts: states to take one epoch from; None for a whole run.
    """
    config = small_runs.make_config(method, trees, *overrides)
    lines: dict[str, EpochLine] = {}
    before: list[State | None] = []
    for number, state in enumerate(starts or [None]):
        run = small_runs.open_run(config, folder / str(number))
        remaining = small_runs.Kept(folder / str(number) / "states")

        def report(line: EpochLine, after: State | None, remaining: Any = remaining) -> None:
            if line["epoch"] == 0:
                before.append(remaining.states[-1] if remaining.states else None)
                lines[line["stage"]] = line
            if starts is not None:
                raise EnoughError
            remaining(line, after)

        with suppress(EnoughError):
            work = run.job, run.bank, run.batches, report
            deterministic.train(*work, device=small_runs.CPU, state=state)
    return lines, before
