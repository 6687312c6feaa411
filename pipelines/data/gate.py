"""The gate: everything that can be known before any work, without Ray and without opening an image.

Settings, layout, splits, what can be measured, weights, where to go on from, room on the disk. What
is wrong is refused here with the remedy, not after hours; what is missing is said.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.config.run import RunConfig
from pipelines.data import room, sound_settings, sound_weights, trainable
from pipelines.data.check import counts_differ
from pipelines.data.listed import fit_rows, read
from pipelines.data.measurable import measurable, why_unmeasured
from pipelines.data.sample_list import find_rows, recall, rows_of_checkpoint
from pipelines.errors import UserError
from pipelines.runs import checkpoint, runlog, warned
from reid_core.methods import METHODS
from reid_core.types import OUTLIER, Dataset, Modality, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passed:
    """What a run would begin with.

    Attributes:
        dataset: as listed.
        train: what is trained on.
        measured: what scores are reported of; empty where none can be measured.
        selection: what an epoch is selected by, where the configuration asks for it; else empty.
        why_unmeasured: why no scores can be measured, in words; "" where they can.
        wrong_counts: sentences about numbers that are not as expected.
        encoder_bytes: size of what is trained; 0 where nobody looked at the weights.
        warnings: what was warned of on the way, of this run or others that passed with it.
    """

    dataset: Dataset
    train: Split
    measured: Split
    selection: Split
    why_unmeasured: str
    wrong_counts: tuple[str, ...]
    encoder_bytes: int = 0
    warnings: tuple[logging.LogRecord, ...] = ()


def check(config: RunConfig, run_dir: Path) -> Passed:
    """Refuse a run that cannot end well, before it costs anything.

    Args:
        config: the run's configuration.
        run_dir: where it would write; need not exist.

    Raises:
        UserError: names what is wrong and what to do.
    """
    return check_all({run_dir: config})[run_dir]


def check_all(runs: Mapping[Path, RunConfig]) -> dict[Path, Passed]:
    """Refuse runs that differ in their data alone, before the first of them costs anything.

    Args:
        runs: configuration of each run directory.

    Raises:
        UserError: see `check`.
    """
    config = next(iter(runs.values()))
    with warned.kept() as warnings:
        for warning in sound_settings.check(config):
            log.warning("%s", warning)
        passed = {run_dir: check_run(one, run_dir) for run_dir, one in runs.items()}
        begun = all(map(runlog.has_checkpoint, runs))
        weights = sound_weights.check(config, begun=begun)
        for remark in weights.remarks:
            log.warning("%s", remark)
        room.check_disk(config, list(runs), weights.encoder_bytes)
    every, size = tuple(warnings.early), weights.encoder_bytes
    return {run: replace(x, encoder_bytes=size, warnings=every) for run, x in passed.items()}


def check_run(config: RunConfig, run_dir: Path, dataset: Dataset | None = None) -> Passed:
    """What `check` refuses of one run's directory, data set, and where it goes on from.

    Args:
        config, run_dir: see `check`.
        dataset: as it is listed; None lists it here.

    Raises:
        UserError: see `check`.
    """
    _check_out(run_dir)
    runlog.refuse_another(run_dir, config)
    passed = check_data(config, dataset)
    start_from = None if runlog.has_checkpoint(run_dir) else checkpoint.finished_stage(config)
    rows = recall(run_dir) if start_from is None else rows_of_checkpoint(start_from)
    if rows:
        find_rows(passed.train, rows)
    return passed


def check_data(config: RunConfig, dataset: Dataset | None = None) -> Passed:
    """Refuse a data set that cannot be trained on, or not measured as the settings ask for.

    Args:
        config, dataset: see `check_run`.

    Raises:
        UserError: see `check`.
    """
    dataset = read(config) if dataset is None else dataset
    inputs = METHODS[config.method].inputs
    wrong_counts = tuple(counts_differ(dataset))
    train = fit_rows(dataset, config)
    trainable.check_rows(dataset, train, config)
    trainable.refuse_shared_identities(dataset, train, config)
    asked, selects = config.evaluation.split, bool(config.evaluation.select)
    if selects and (reason := why_unmeasured(dataset.kind, dataset.val, inputs)):
        raise UserError(f"evaluation.select=val: of the validation split {reason}")
    measured = dataset.val if asked == "val" else dataset.test
    reason = why_unmeasured(dataset.kind, measured, inputs)
    if selects and reason:
        raise UserError(
            f"evaluation.select=val needs scores beside the selection, and of the {asked} split "
            f"{reason}: set evaluation.split=val too"
        )
    return Passed(
        dataset,
        train,
        measured=Split(()) if reason else measured,
        selection=dataset.val if selects else Split(()),
        why_unmeasured=reason,
        wrong_counts=wrong_counts,
    )


def describe(runs: Mapping[Path, RunConfig]) -> list[str]:
    """Pass the gate and train nothing.

    Args:
        runs: see `check_all`.

    Returns:
        Sentences about what would be trained on and measured.

    Raises:
        UserError: see `check`.
    """
    lines = []
    for run_dir, passed in check_all(runs).items():
        lines += [run_dir.name] * (len(runs) > 1)
        lines += _in_words(passed, runs[run_dir])
    return [*lines, "nothing stands in the way"]


def _in_words(passed: Passed, config: RunConfig) -> list[str]:
    lines, dataset = [], passed.dataset
    for name in ("train", "val", "test"):
        split: Split = getattr(dataset, name)
        counts = [f"{len(split.rows(m)):,} {m}" for m in Modality if len(split.rows(m))]
        if counts:
            known = len(set(split.pids.tolist()) - {OUTLIER})
            lines.append(f"{name}: {', '.join(counts)}; {known:,} known identities")
    if reason := passed.why_unmeasured:
        lines.append(
            f"training without evaluation: of the {config.evaluation.split} split {reason}"
        )
        return lines
    inputs = METHODS[config.method].inputs
    for name, queries in measurable(dataset.kind, passed.measured, inputs).items():
        lines.append(f"{name}: {queries.matched:,} of {queries.total:,} queries have a match")
    return lines


def _check_out(run_dir: Path) -> None:
    """Refuse a run directory that could not be made or written to."""
    existing = room.existing(run_dir)
    if run_dir.is_symlink() and not run_dir.exists():
        raise UserError(f"cannot write to {run_dir}: it is a link to nowhere; choose another --out")
    if not existing.is_dir():
        raise UserError(f"cannot write to {run_dir}: {existing} is no folder; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {run_dir}: {existing} is not yours; choose another --out")
