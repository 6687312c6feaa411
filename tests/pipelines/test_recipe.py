"""The published recipe at its own model and image size, on a small tree and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipelines import cli
from pipelines.config.sections import ModelConfig
from pipelines.runs import checkpoint, runlog
from reid_core.datasets import synthetic
from tests.core.openai_layout import Archive, rn50_weights

pytestmark = [pytest.mark.slow, pytest.mark.ray]
FRAMES = 2  # of an identity and camera
SHORT = "{epochs: 1, clusters_per_batch: 2, instances: 2, batches_per_epoch: 2, evaluate_every: 0}"
OVERRIDES = (
    f"cclnet.prepare={SHORT}",
    "cclnet.prompts={epochs: 1, batch_size: 16}",
    f"cclnet.align={SHORT}",
    "cclnet.clustering={k1: 8, k2: 3, min_samples: 2}",
    "cclnet.swap.start_epoch=0",
    "evaluation.start=false",
    "trainer.embed_batch=16",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """25 identities in the layout of SYSU-MM01, of whom the first frames are kept."""
    identities = tmp_path / "sysu"
    synthetic.write(identities, num_identities=25, seed=0, workers=2)
    for folder in identities.glob("cam*/*"):
        for image in sorted(folder.iterdir())[FRAMES:]:
            image.unlink()
    return identities


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """RN50.pt as OpenAI packs it, with random numbers."""
    marks = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state = rn50_weights(seed=0) | {key: torch.tensor(value) for key, value in marks.items()}
    torch.jit.script(Archive(state)).save(str(tmp_path / "RN50.pt"))
    return tmp_path / "RN50.pt"


@pytest.mark.usefixtures("local_ray")
@pytest.mark.night  # 3 minutes
def test_three_stages_of_cclnet_on_sysu_and_every_protocol(
    root: Path, weights: Path, tmp_path: Path
) -> None:
    run_dir, scores = tmp_path / "run", tmp_path / "scores.json"
    given = [f"data.root={root}", f"model.pretrained={weights}", *OVERRIDES]
    commands = (
        ["train", "cclnet_sysu.yaml", "--out", str(run_dir), *given],
        ["eval", str(run_dir), "--json", str(scores)],
    )
    for command in commands:
        result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    stages = [line["stage"] for line in runlog.read_metrics(run_dir)]
    assert stages == ["prepare", "prompts", "align"]
    assert {path.name for path in (run_dir / "stages").iterdir()} == set(stages)
    state = checkpoint.load(checkpoint.find(run_dir))
    published = ModelConfig(name="RN50", pretrained=str(weights), height=288, width=144)
    assert state["config"]["model"] == published.model_dump(mode="json"), "and no option is on"
    results = json.loads(scores.read_text())
    names = {f"{mode}_{shots}" for mode in ("all", "indoor") for shots in ("single", "multi")}
    assert results.keys() == {f"sysu/{name}/infrared_to_visible" for name in names}
    test_identities, infrared_cameras = 5, 2
    for entry in results.values():
        assert entry["num_valid_queries"] == test_identities * infrared_cameras * FRAMES
    written = json.loads((run_dir / "summary.json").read_text())["evaluation"]
    assert results.keys() == written.keys()
