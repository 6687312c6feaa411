"""The files of a run directory: configuration, environment, one line per epoch, summary."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.config import files
from pipelines.config import run as configuration
from pipelines.config.overrides import AS_TEXT
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.runs import tensorboard
from pipelines.runs.checkpoint import WITHIN, is_done
from pipelines.runs.environment import environment
from pipelines.runs.records import EpochLine, Summary
from pipelines.storage.files import Json, append_line, finite, replace_file, to_json, write_json
from pipelines.storage.lock import unwritable
from pipelines.storage.shards import location

log = logging.getLogger(__name__)
CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def claim(run_dir: Path, config: RunConfig, command: Sequence[str]) -> None:
    """Make the run directory that of a configuration, or continue in it.

    Raises:
        UserError: not writable, or another configuration was trained in it; names the keys.
    """
    if places := _moved(refuse_another(run_dir, config), config):
        log.warning(
            "data.root: %s -> %s: the run goes on with the images that have the same names there",
            *places,
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        replace_file(run_dir / CONFIG, configuration.dump(config))
        now = environment(command)
        if has_begun(run_dir):  # the first command began the run
            now["started"] = _started(run_dir) or now["started"]
        write_json(run_dir / ENVIRONMENT, now)
    except OSError as error:
        raise unwritable(run_dir, error) from error


def refuse_another(run_dir: Path, config: RunConfig) -> RunConfig | None:
    """Refuse a directory in which another configuration was trained, or finished on other images.

    Returns:
        The configuration that its run had last; None before an epoch is done.

    Raises:
        UserError: names the keys and what to do.
    """
    before = _began_with(run_dir)
    own = config.identity()
    if before is not None and (changed := configuration.differences(before.identity(), own)):
        raise UserError(
            f"{run_dir} holds a run with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nchoose another --out, or delete that folder"
        )
    if has_checkpoint(run_dir) and not (run_dir / CONFIG).exists():
        raise UserError(f"{run_dir} holds checkpoints but no {CONFIG}: choose another --out")
    is_finished = (run_dir / SUMMARY).exists() or is_done(config, run_dir)
    if is_finished and (places := _moved(before, config)):
        raise UserError(
            f"{run_dir} is finished, with the images of {places[0]}: its scores are theirs. "
            f"`crossreid eval {run_dir} --root {places[1]}` measures it on others"
        )
    return before


def _moved(before: RunConfig | None, config: RunConfig) -> tuple[str, str] | None:
    """Where the images of a begun run were and are, if that is another place."""
    if before is None or before.data.root == config.data.root:
        return None
    return location(before.data.root), location(config.data.root)


def _began_with(run_dir: Path) -> RunConfig | None:
    """The configuration that the run of a directory had last; None before an epoch is done."""
    known = run_dir / CONFIG
    if not has_begun(run_dir) or not known.exists():
        return None
    return configuration.validate(files.read(known, as_text=AS_TEXT), source=str(known))


def has_begun(run_dir: Path) -> bool:
    """Whether an epoch was finished there, or begun and kept."""
    logged = any(True for _ in read_metrics(run_dir))
    return logged or (run_dir / SUMMARY).exists() or has_checkpoint(run_dir)


def _started(run_dir: Path) -> Json:
    """When the first command of a run began; None where nothing tells."""
    try:
        started: Json = json.loads((run_dir / ENVIRONMENT).read_text())["started"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return started


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is something to go on from, of a finished epoch or from within one."""
    return any(run_dir.glob("checkpoint_*")) or (run_dir / WITHIN).exists()


def append_metrics(run_dir: Path, line: EpochLine) -> None:
    """Add one epoch to the log, and to TensorBoard's files."""
    append_line(run_dir / METRICS, to_json(finite(line), indent=None))
    tensorboard.write(run_dir, line)


def read_metrics(run_dir: Path) -> Iterator[EpochLine]:
    """The epochs logged so far; a line that a killed run left unfinished is passed over."""
    return (epoch for _, epoch in numbered_metrics(run_dir) if epoch is not None)


def numbered_metrics(run_dir: Path) -> Iterator[tuple[int, EpochLine | None]]:
    """Every line of the log, from 1, that is not empty: its epoch, or None where it is damaged."""
    path = run_dir / METRICS
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(lines, start=1):
        if text.strip():
            yield number, _epoch(text)


def _epoch(text: str) -> EpochLine | None:
    try:
        line: EpochLine = json.loads(text)
        return {**line, "stage": str(line["stage"]), "epoch": int(line["epoch"])}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def first_difference(one: Path, other: Path) -> tuple[str, int] | None:
    """First epoch (stage, number) in which two runs labeled an image differently; None if none.

    Raises:
        UserError: no epoch in which both say how they labeled.
    """
    first, second = (
        {(x["stage"], x["epoch"]): x["labels"] for x in read_metrics(run) if x.get("labels")}
        for run in (one, other)
    )
    if not first.keys() & second.keys():
        raise UserError(f"{one} and {other} have no epoch in common whose labels both wrote down")
    return next((x for x in first if x in second and first[x] != second[x]), None)


def rewind(run_dir: Path, stage: str, epoch: int, stages: Sequence[str]) -> None:
    """Take back what log and TensorBoard hold of epochs after the one that the checkpoint holds.

    Args:
        run_dir: run directory.
        stage, epoch: the last epoch to keep; "" for none.
        stages: all stages in their order.
    """
    last = (stages.index(stage), epoch) if stage else (-1, -1)

    def is_later(stage: str, epoch: int) -> bool:
        return stage in stages and (stages.index(stage), epoch) > last

    lines = read_metrics(run_dir)
    remaining = [line for line in lines if not is_later(line["stage"], line["epoch"])]
    replace_file(
        run_dir / METRICS, "".join(to_json(finite(line), indent=None) for line in remaining)
    )
    tensorboard.rewind(run_dir, is_later)


def write_summary(run_dir: Path, summary: Summary) -> None:
    """Write summary.json."""
    write_json(run_dir / SUMMARY, finite(summary))
