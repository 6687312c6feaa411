"""One checkpoint: everything that a run needs to go on, in one file, and facts beside it.

`state.pt` holds tensors and plain values only; times and paths go into `info.json`, which also
says how large a whole `state.pt` is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.config import run as configuration
from pipelines.config.run import RunConfig, with_new_names
from pipelines.errors import UserError
from pipelines.runs.records import ProgressState, State
from pipelines.storage.files import own_folder, replace_file, write_json
from reid_core.methods import METHODS

log = logging.getLogger(__name__)
STATE, INFO = "state.pt", "info.json"
STAGES = "stages"
WITHIN = "within_epoch.pt"  # beside the checkpoints, see `pipelines.training.within_epoch`
FORMAT = 1
TO_GO_ON_FROM = ("config", "progress", "module", "epoch", "optimiser")
_STOOD = {"stage": str, "epoch": int, "handed": dict, "scores": dict}  # in progress
_TABLES = State.__annotations__.keys() - {"format", "trains_encoder", "quick_gelu", "pixels"}


def save(folder: Path, state: State, info: Mapping[str, object] | None = None) -> None:
    """Write both files; what was there before stays until the new state is whole.

    Args:
        folder: made if it does not exist.
        state: tensors and plain values.
        info: facts beside those of the state: its stage, its epoch and the time.

    Raises:
        OSError: the disk is full, or another reason why the folder cannot be written.
    """
    own_folder(folder)
    replace_file(folder / STATE, lambda file: torch.save({"format": FORMAT, **state}, file))
    progress: Mapping[str, object] = state.get("progress", {})
    facts = {key: progress[key] for key in ("stage", "epoch") if key in progress}
    facts |= {"written": time.time(), **(info or {})}
    write_json(folder / INFO, {**facts, "bytes": (folder / STATE).stat().st_size})


def is_whole(folder: Path) -> bool:
    """Whether both files arrived complete: a copy may have been interrupted."""
    try:
        expected: int = _info(folder)["bytes"]
        return (folder / STATE).stat().st_size == expected
    except (OSError, ValueError, KeyError):
        return False


def whole_ones(run_dir: Path, pattern: str = "checkpoint_*") -> list[Path]:
    """The checkpoint folders of a run that arrived complete, in the order in which it wrote them.

    A copy of a run has other times of its files, so what a checkpoint says of itself counts.
    """
    result = [state.parent for state in run_dir.glob(f"{pattern}/{STATE}")]
    return sorted(filter(is_whole, result), key=lambda folder: _info(folder).get("written", 0.0))


def _info(folder: Path) -> Any:
    return json.loads((folder / INFO).read_text())


def save_stage(run_dir: Path, state: State) -> None:
    """Keep the last checkpoint of a stage beside the newest ones, for `start_from`."""
    save(own_folder(run_dir / STAGES) / state["progress"]["stage"], state)


def load(folder: Path) -> State:
    """The state of a checkpoint folder, on the CPU.

    Raises:
        UserError: no checkpoint there, a damaged one, or one of another format.
    """
    return load_file(folder / STATE)


def load_file(path: Path) -> State:
    """The state in a file, see `load`."""
    if not path.is_file():
        raise UserError(f"{path.parent} holds no checkpoint: {path.name} is missing")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch would advise to read it in a way that runs whatever code the file holds
        raise _damaged(path, type(error).__name__) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint of crossreid: it holds a {type(state).__name__}")
    written = state.get("format")
    if not isinstance(written, int) or written != FORMAT:
        raise UserError(f"{path} has format {written!r:.40}, this version reads {FORMAT}")
    for entry in _TABLES & state.keys():
        if not isinstance(value := state.get(entry), dict):
            raise _damaged(path, f"its {entry} is a {type(value).__name__}")
    if "config" in state:
        state["config"] = with_new_names(state["config"])
    return state


def load_to_go_on_from(path: Path) -> State:
    """The state in a file from which training goes on.

    Raises:
        UserError: see `load`; also one that does not say where a run stood.
    """
    state = load_file(path)
    lacking = [entry for entry in TO_GO_ON_FROM if entry not in state]
    progress: dict[str, object] = dict(state.get("progress", {}))
    lacking += [
        f"progress.{key}" for key, kind in _STOOD.items() if not isinstance(progress.get(key), kind)
    ]
    lacking += [
        f"progress without {key}" for key in progress.keys() - ProgressState.__annotations__
    ]
    if lacking:
        raise _damaged(path, f"it lacks {', '.join(lacking)}")
    return state


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is damaged, or no checkpoint of crossreid ({what}): take another one, or start a "
        "new run; other programs' weights are model.pretrained=FILE"
    )


def config_of(state: State, source: Path) -> RunConfig:
    """The configuration that a checkpoint was trained with.

    Raises:
        UserError: it holds none, or one that this version cannot read.
    """
    if not isinstance(state.get("config"), dict):
        raise UserError(
            f"{source} says nothing of its method and model: it is no checkpoint of a run; "
            "`crossreid checkpoint import` makes one of released weights"
        )
    return configuration.validate(state["config"], source=str(source))


def find(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or the newest whole one of a run.

    Other folders count where a path has none of a run's own names: the stages of one, say.

    Raises:
        UserError: nothing there.
    """
    if (path / STATE).is_file():
        return path
    result = whole_ones(path) or whole_ones(path, "*")
    if not result:
        partial = sorted(entry.parent.name for entry in path.glob(f"*/{STATE}"))
        runs = sorted({state.parent.parent.name for state in path.glob(f"*/*/{STATE}")})
        raise UserError(
            f"no checkpoint in {path}: expected {STATE} there or one folder below"
            + (f"; it holds {', '.join(runs)}: name one of them" if runs else "")
            + (f"; {', '.join(partial)} arrived in part: copy it again" if partial else "")
        )
    return result[-1]


def finished_stage(config: RunConfig) -> Path | None:
    """The checkpoint that `start_from` names, where a run of this configuration can begin with it.

    A stage that has more epochs in this run than in the one it starts from goes on, with a warning.

    Raises:
        UserError: no checkpoint, one of another method, model or `Method.of_weights`, or the end of
            the last epoch that this run has.
    """
    if config.start_from is None:
        return None
    folder = find(config.start_from)
    state = load(folder)
    given = config_of(state, folder)
    method = METHODS[config.method]
    # with what is handed on in rows and classes of the training images
    settings = {*method.of_weights, "labels"}
    data, evaluation = {"kind", "trial", "fit"}, {"split"}
    before, now = (
        one.model_dump(
            mode="json",
            include={
                "method": True,
                "model": True,
                "data": data,
                "evaluation": evaluation,
                method.name: settings,
            },
        )
        for one in (given, config)
    )
    if changed := configuration.differences(before, now):
        raise UserError(
            f"start_from={config.start_from} was trained with other settings than this run; they "
            "must agree:\n  " + "\n  ".join(changed)
        )
    _require_finished(state, given, config)
    _require_epochs_after(state, config)
    return folder


def _require_finished(state: State, given: RunConfig, config: RunConfig) -> None:
    """Refuse what is no end of a stage of the run.

    Raises:
        UserError: it is the middle of one, or of a stage that the run does not have.
    """
    progress, stages = state.get("progress"), METHODS[config.method].stages(config.settings)
    if not progress:
        return
    stage, epoch = progress["stage"], progress["epoch"]
    if stage not in stages:
        raise UserError(
            f"start_from={config.start_from} is the end of stage {stage!r}, which this run does "
            f"not have ({', '.join(stages)}): name an earlier one"
        )
    epochs: int = getattr(given.settings, stage).epochs
    if state.get("within") or epoch + 1 < epochs:
        raise UserError(
            f"start_from={config.start_from} is epoch {epoch + 1} of {epochs} of stage {stage!r}: "
            "go on with that run, or name a finished stage, as in its folder stages"
        )


def _require_epochs_after(state: State, config: RunConfig) -> None:
    """Refuse the checkpoint that the last epoch of the run would end with.

    Raises:
        UserError: no epoch is left.
    """
    progress = state.get("progress")
    epochs = getattr(config.settings, progress["stage"]).epochs if progress else 0
    if progress and progress["epoch"] + 1 < epochs:
        log.warning(
            "start_from=%s ended stage %s after %d epochs, of which this run has %d: it goes on",
            *(config.start_from, progress["stage"], progress["epoch"] + 1, epochs),
        )
    if progress and is_last(config, progress["stage"], progress["epoch"]):
        raise UserError(
            f"start_from={config.start_from} is the end of {progress['stage']}, after which this "
            "run has no epoch left: name an earlier stage, or give it more epochs "
            f"({config.method}.{progress['stage']}.epochs)"
        )


def is_last(config: RunConfig, stage: str, epoch: int) -> bool:
    """Whether no epoch of the configuration comes after this one."""
    last = METHODS[config.method].stages(config.settings)[-1]
    epochs: int = getattr(config.settings, last).epochs
    return stage == last and epoch + 1 >= epochs


def is_done(config: RunConfig, run_dir: Path) -> bool:
    """Whether the newest checkpoint of a run directory is that of its last epoch."""
    newest = whole_ones(run_dir)[-1:]
    facts: dict[str, Any] = _info(newest[0]) if newest else {}
    return is_last(config, str(facts.get("stage")), int(facts.get("epoch", -1)))


def bytes_of(run_dir: Path) -> int:
    """What the checkpoints that make room for new ones take in a run directory; no stages."""
    patterns = ("checkpoint_*/**/*", WITHIN)
    sizes = 0
    for file in (file for pattern in patterns for file in run_dir.glob(pattern)):
        with suppress(OSError):  # another process takes away what is old
            sizes += file.stat().st_size if file.is_file() else 0
    return sizes


def content_hash(state: object) -> str:
    """SHA-256 over sorted (key, dtype, shape, bytes): equal for equal content.

    The configuration of a run is left out: it tells where data lie and how many workers train.
    """
    digest = hashlib.sha256()
    for key, value in _leaves("", state):
        if key.startswith("/config/"):
            continue
        digest.update(f"{key}\0".encode())
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous()
            digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _leaves(prefix: str, tree: object) -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict):
        for key in sorted(tree, key=str):
            yield from _leaves(f"{prefix}/{key}", tree[key])
    elif isinstance(tree, (list, tuple)):
        for index, item in enumerate(tree):
            yield from _leaves(f"{prefix}/{index}", item)
    else:
        yield prefix, tree
