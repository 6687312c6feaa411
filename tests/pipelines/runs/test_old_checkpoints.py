"""Checkpoints of version 0.1: read, gone on from, refused in words where they hold no encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.evaluation.encoder import open_encoder
from pipelines.runs import checkpoint
from pipelines.training.loop import TrainingLoop
from tests.pipelines import small_runs

OLD = Path(__file__).parents[2] / "data" / "checkpoints"


@pytest.mark.parametrize("method", ["cclnet", "csdn"])
def test_it_is_read_with_the_present_names_and_holds_no_encoder(method: str) -> None:
    state = checkpoint.load(OLD / method)
    assert (
        state["config"][method]["images" if method == "csdn" else "align"]["optimizer"] == "adamw"
    )
    assert state["config"]["trainer"]["gradient_accumulation"] == 1
    with pytest.raises(UserError, match=r"stage 'prompts' and holds no trained encoder"):
        open_encoder(OLD / method)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages"), [("cclnet", ["align"]), ("csdn", ["fusion", "images"])]
)
def test_a_run_goes_on_from_it(tmp_path: Path, method: str, stages: list[str]) -> None:
    small_runs.write_trees(tmp_path)
    run = small_runs.open_run(small_runs.make_config(method, tmp_path), tmp_path / "run")
    lines: list[dict[str, Any]] = []
    TrainingLoop(
        run.job,
        run.bank,
        run.batches,
        lambda line, state: lines.append(line),
        device=small_runs.CPU,
        state=checkpoint.load(OLD / method),
    ).run()
    assert [line["stage"] for line in lines] == [name for name in stages for _ in range(2)]
