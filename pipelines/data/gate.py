"""The gate: everything that can be known before any work, without Ray and without opening an image.

Settings, layout, splits, what can be measured, weights, where to go on from, room on the disk. What
is wrong is refused here with the remedy, not after hours; what is missing is said.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.cluster import join
from pipelines.config.run import RunConfig
from pipelines.config.trainer import TrainerConfig
from pipelines.data import room, trainable
from pipelines.data.check import counts_differ
from pipelines.data.measurable import measurable, why_unmeasured
from pipelines.data.prepare import fit_rows, read, refuse_shared_identities
from pipelines.data.sample_list import find_rows, recall, rows_of_checkpoint
from pipelines.errors import UserError
from pipelines.runs import checkpoint, runlog
from pipelines.storage.shards import location
from reid_core.datasets import LAYOUTS
from reid_core.methods import METHODS
from reid_core.models import backbones, remarks
from reid_core.types import OUTLIER, Dataset, Modality, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passed:
    """What a run would begin with.

    Attributes:
        dataset: as listed.
        start_from: checkpoint of a finished stage, or None.
        lines: sentences for whoever asks without training.
    """

    dataset: Dataset
    start_from: Path | None
    lines: tuple[str, ...]


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
    first, config = next(iter(runs.items()))
    check_settings(config)
    passed = {run_dir: _check_data(one, run_dir) for run_dir, one in runs.items()}
    begun = runlog.has_checkpoint(first)
    model_bytes = check_weights(config, begun=begun)
    if config.model.pretrained is None and config.start_from is None and not begun:
        log.warning("model.pretrained=null: %s begins with random weights", config.model.name)
    room.check_disk(config, list(runs), model_bytes)
    return passed


def _check_data(config: RunConfig, run_dir: Path) -> Passed:
    """What `check` refuses of one run's directory, data set, and where it goes on from."""
    _check_out(run_dir)
    runlog.refuse_another(run_dir, config)
    dataset = read(config)
    counts_differ(dataset)  # what differs is said later, a list of counts that is broken refused
    train = fit_rows(dataset, config)
    trainable.check_rows(dataset, train, config)
    measured = dataset.val if config.evaluation.split == "val" else dataset.test
    refuse_shared_identities(dataset, config)
    _check_selection(dataset, measured, config)
    start_from = None if runlog.has_checkpoint(run_dir) else checkpoint.finished_stage(config)
    rows = recall(run_dir) if start_from is None else rows_of_checkpoint(start_from)
    if rows:
        find_rows(train, rows)
    return Passed(dataset, start_from, tuple(_in_words(dataset, measured, config)))


def _check_selection(dataset: Dataset, measured: Split, config: RunConfig) -> None:
    inputs = METHODS[config.method].inputs
    if config.evaluation.select and (reason := why_unmeasured(dataset.kind, dataset.val, inputs)):
        raise UserError(f"evaluation.select=val: of the validation split {reason}")
    if config.evaluation.select and (reason := why_unmeasured(dataset.kind, measured, inputs)):
        raise UserError(
            f"evaluation.select=val needs scores beside the selection, and of the "
            f"{config.evaluation.split} split {reason}: set evaluation.split=val too"
        )


def describe(config: RunConfig, run_dir: Path) -> list[str]:
    """Pass the gate and train nothing; of all divisions where the configuration names all.

    Returns:
        Sentences about what would be trained on and measured.

    Raises:
        UserError: see `check`.
    """
    if config.data.trial != "all":
        return [*check(config, run_dir).lines, "nothing stands in the way"]
    lines = []
    for number in LAYOUTS[config.data.kind].trials:
        data = config.data.model_copy(update={"trial": number})
        lines.append(f"trial {number}")
        lines += check(config.model_copy(update={"data": data}), run_dir).lines
    return [*lines, "nothing stands in the way"]


def _in_words(dataset: Dataset, measured: Split, config: RunConfig) -> list[str]:
    lines, inputs = [], METHODS[config.method].inputs
    for name in ("train", "val", "test"):
        split: Split = getattr(dataset, name)
        counts = [f"{len(split.rows(m)):,} {m}" for m in Modality if len(split.rows(m))]
        if counts:
            known = len(set(split.pids.tolist()) - {OUTLIER})
            lines.append(f"{name}: {', '.join(counts)}; {known:,} known identities")
    if reason := why_unmeasured(dataset.kind, measured, inputs):
        lines.append(
            f"training without evaluation: of the {config.evaluation.split} split {reason}"
        )
        return lines
    for name, queries in measurable(dataset.kind, measured, inputs).items():
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


def check_settings(config: RunConfig) -> None:
    """Refuse settings that contradict each other; warn of those without effect."""
    for warning in refuse_settings(config):
        log.warning("%s", warning)


def refuse_settings(config: RunConfig) -> list[str]:
    """Refuse settings that contradict each other; returns a sentence on each without effect."""
    method, trainer = METHODS[config.method], config.trainer
    if (address := config.ray.address or "local") not in ("local", "auto"):
        join.resolve(address)
    for folder in map(location, config.data.extra_roots):
        if "://" not in folder and not Path(folder).is_dir():
            raise UserError(
                f"data.extra_roots: {folder} is not a folder: leave it out, or mount it"
            )
    _check_sharing(method.batch_rows(config.settings), trainer)
    if trainer.strict and trainer.compile:
        raise UserError(
            "trainer.compile=true lets the compiler choose the order of sums, which "
            "trainer.strict=true fixes: switch one of them off"
        )
    if trainer.strict and config.model.drop_path:
        raise UserError(
            f"model.drop_path={config.model.drop_path} draws on every worker anew, which "
            "trainer.strict=true cannot repeat for another number of workers: set one of them to 0"
        )
    _check_texts(config)
    if config.data.trial != 1 and not LAYOUTS[config.data.kind].has_trials:
        raise UserError(
            f"data.trial={config.data.trial} is for data.kind=regdb: {config.data.kind} has no "
            "divisions; a packed RegDB holds the one that `crossreid data convert --trial` chose"
        )
    if config.start_from is not None and config.data.trial == "all":
        raise UserError(
            f"start_from={config.start_from} is of one division, and data.trial=all trains ten: "
            "choose its trial"
        )
    uses_val = config.evaluation.split == "val" or config.evaluation.select == "val"
    if uses_val and config.data.fit != "train":
        raise UserError(
            "evaluation.split=val and evaluation.select=val measure identities that "
            "data.fit=train+val trains on: set data.fit=train"
        )
    if trainer.gradient_accumulation > 1 and not method.can_accumulate:
        raise UserError(
            f"trainer.gradient_accumulation={trainer.gradient_accumulation}: the losses of "
            f"{config.method} compare rows of a whole batch, which parts cannot; make batches "
            "smaller, or set trainer.activation_checkpointing=true"
        )
    try:
        warnings = list(method.check(config.settings))
    except ValueError as error:
        raise UserError(str(error)) from error
    return [*warnings, *trainer.unread(), *_idle_augmentation(config)]


def _idle_augmentation(config: RunConfig) -> list[str]:
    """Warnings about transforms that were asked for and that no view of the method does."""
    views = METHODS[config.method].augmentations(config.settings, config.augmentation.options())
    done = [view for each in views.values() for view in each]
    return [
        f"augmentation.{name}={value}: no effect with the views of method {config.method}"
        for name, field in type(config.augmentation).model_fields.items()
        if (value := getattr(config.augmentation, name)) and value != field.default
        if not any(getattr(view, name) == value for view in done)
    ]


def _check_texts(config: RunConfig) -> None:
    """A method that learns words or compares sentences needs a text tower."""
    try:
        served = backbones.has_text(config.model.name)
    except ValueError as error:
        raise UserError(str(error)) from error
    method = METHODS[config.method]
    if not served and method.needs_text(config.settings):
        without = f"; {method.without_text} leaves the texts out" if method.without_text else ""
        raise UserError(
            f"method {config.method} compares images with texts, but model.name="
            f"{backbones.without_text(config.model.name)}{without}"
        )


def _check_sharing(batch_rows: Mapping[str, int], trainer: TrainerConfig) -> None:
    """Every worker must get as many rows of a batch as the others, however many workers there are.

    Args:
        batch_rows: {config key: rows of a global batch}.
        trainer: how many share them.
    """
    fewest = trainer.num_workers if trainer.min_workers is None else trainer.min_workers
    if fewest > trainer.num_workers:
        raise UserError(
            f"trainer.min_workers={fewest} is more than trainer.num_workers={trainer.num_workers}"
        )
    key = "shards" if trainer.strict else "num_workers"
    for workers in range(trainer.num_workers, fewest - 1, -1):
        allowed = "" if workers == trainer.num_workers else f" (min_workers={fewest} allows that)"
        if trainer.strict and trainer.shards % workers:
            raise UserError(
                f"trainer.shards={trainer.shards} cannot be shared by trainer.num_workers="
                f"{workers}{allowed}: choose a multiple"
            )
        parts = trainer.shards if trainer.strict else workers
        for name, rows in batch_rows.items():
            if rows % parts:
                raise UserError(
                    f"{name} = {rows} cannot be shared by trainer.{key}={parts}{allowed}: "
                    "choose a multiple"
                )
            if rows // parts < trainer.gradient_accumulation:
                raise UserError(
                    f"trainer.gradient_accumulation={trainer.gradient_accumulation} parts of the "
                    f"{rows // parts} rows that a worker has of {name} = {rows}: take fewer parts"
                )


def check_weights(config: RunConfig, *, begun: bool = False) -> int:
    """Load the model once and pass one image through it; returns its size in bytes.

    Args:
        config: the run's configuration.
        begun: a run goes on, under the name that its model had when it began.

    Raises:
        UserError: unknown model, missing or unfitting weights, a model that takes no such image.
    """
    size, method = (config.model.height, config.model.width), METHODS[config.method]
    try:
        options = config.model.options()
        model = backbones.load(
            config.model.name, config.model.pretrained, options=options, tagged=begun
        )
        encoder = method.load_encoder(config.settings, model, *size, None).eval()
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    try:
        with torch.inference_mode():
            encoder.embed(torch.zeros(1, 3, *size, dtype=torch.uint8), method.inputs[0])
    except Exception as error:  # of a layer inside, whose words say what does not fit
        raise UserError(
            f"model.name={config.model.name} cannot embed an image of {size[0]} x {size[1]} as it "
            f"is taken apart here: {error}. Take another model of the table in docs/encoders.md"
        ) from error
    for name, parameter in model.model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"model.pretrained={config.model.pretrained}: {name} holds numbers that are not "
                "finite: the weights are damaged, take others"
            )
    for remark in remarks.of_weights(model, height=size[0], width=size[1]):
        log.warning("%s", remark)
    return sum(p.numel() * p.element_size() for p in model.model.parameters())
