"""The state of a stage: what a checkpoint holds of it, and how it goes on from there."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from pipelines.config.run import RunConfig
from pipelines.runs import checkpoint, learned_prompts
from pipelines.runs.records import State
from pipelines.training.progress import Progress
from reid_core.method import Labels
from reid_core.models.backbones import Backbone
from reid_core.stage import CachedStage, Stage
from reid_core.types import Modality


def collect(
    config: RunConfig,
    progress: Progress,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    backbone: Backbone,
) -> State:
    """Everything that the run needs to go on after an epoch of the stage."""
    return {
        "config": config.used(),
        "progress": progress.state_dict(),
        "trains_encoder": not isinstance(stage, CachedStage),
        "quick_gelu": backbone.quick_gelu,
        "pixels": (backbone.pixels.mean, backbone.pixels.std),
        "module": tensors_of(stage),
        "epoch": stage.state_dict(),
        "optimiser": optimizer.state_dict(),  # so spelt in format 1
    }


def restore(
    state: State | None, name: str, stage: Stage, optimizer: torch.optim.Optimizer
) -> tuple[int, Labels]:
    """Load the state if it is that of this stage, or of an epoch of it.

    Args:
        state: from `collect`, None for none.
        name: of the stage.
        stage, optimizer: to load into.

    Returns:
        The first epoch to run, and the labels of the last clustering, none without one.

    Raises:
        ValueError: the state is of another model; names what differs.
    """
    if not state or stage_of(state) != name:
        return 0, {}
    saved, expected = state["module"], tensors_of(stage)
    if saved.keys() != expected.keys():
        raise ValueError(
            f"the checkpoint is of another model: missing {expected.keys() - saved.keys()}, "
            f"unexpected {saved.keys() - expected.keys()}"
        )
    stage.module.load_state_dict(saved, strict=False)
    # a copy, since torch keeps the tensors that it is given and steps change them
    optimizer.load_state_dict(copy.deepcopy(state["optimiser"]))
    epoch = state["epoch"]
    labels = {m: epoch[f"labels.{m}"].numpy() for m in Modality if f"labels.{m}" in epoch}
    within = state.get("within")
    return int(within["epoch"] if within else state["progress"]["epoch"] + 1), labels


def stage_of(state: State) -> str:
    """The stage that a state is of: of its last finished epoch, or of the one underway."""
    within = state.get("within")
    return within["stage"] if within else state["progress"]["stage"]


def underway(state: State | None, name: str) -> State | None:
    """The state where it was kept within an epoch of this stage; else None."""
    return state if state and state.get("within") and stage_of(state) == name else None


def leave(run_dir: Path, state: State, stage: Stage, backbone: Backbone) -> None:
    """What a finished stage leaves beside the newest checkpoints: its last one, learned texts."""
    learned_prompts.record(run_dir, stage.module, backbone.text_tower)
    checkpoint.save_stage(run_dir, state)


def tensors_of(stage: Stage) -> dict[str, Tensor]:
    """What a checkpoint holds of a stage's module: all of it, but no frozen tower."""
    state = stage.module.state_dict()
    if not isinstance(stage, CachedStage):
        return state
    named = stage.module.named_parameters(remove_duplicate=False)
    frozen = {name for name, p in named if not p.requires_grad}
    return {name: x for name, x in state.items() if name not in frozen}
