"""Checkpoints of version 0.1: read, gone on from, refused in words where they hold no encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import UserError
from pipelines.evaluation.encoder import open_encoder
from pipelines.runs import checkpoint
from pipelines.training.loop import TrainingLoop
from reid_core.models import backbones
from reid_core.models.encoders import ImageEncoder
from tests.core.models.test_encoders import assert_gives_what_the_first_version_gave
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


def test_an_encoder_in_it_gives_what_it_gave(tmp_path: Path) -> None:
    """The state of stage "prompts" with an encoder in it, as the end of stage "align" had it."""
    state = torch.load(OLD / "cclnet" / "state.pt", weights_only=True)
    assert "optimizer" not in state["config"]["cclnet"]["align"], "its settings have old names"
    size = {"height": 96, "width": 48}
    encoder = ImageEncoder(backbones.load(backbones.SMALL, "bundled"), **size)
    state["config"]["model"] |= size
    state["progress"]["stage"], state["trains_encoder"] = "align", True
    state["module"] = encoder.state_dict()
    checkpoint.save(tmp_path / "old", state)
    loaded = open_encoder(tmp_path / "old").encoder
    assert isinstance(loaded, ImageEncoder)
    assert_gives_what_the_first_version_gave(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages"), [("cclnet", ["align"]), ("csdn", ["fusion", "images"])]
)
def test_a_run_goes_on_from_it(trees: Path, tmp_path: Path, method: str, stages: list[str]) -> None:
    run = small_runs.open_run(small_runs.make_config(method, trees), tmp_path / "run")
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
