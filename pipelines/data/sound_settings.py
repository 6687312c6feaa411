"""Whether the settings of a run go together; known without data and without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipelines.cluster import join
from pipelines.config.run import RunConfig
from pipelines.config.trainer import TrainerConfig
from pipelines.errors import UserError
from pipelines.storage.shards import location
from reid_core.datasets import LAYOUTS
from reid_core.methods import METHODS
from reid_core.models import backbones


def check(config: RunConfig) -> list[str]:
    """Refuse settings that contradict each other.

    Returns:
        A sentence on each that has no effect.

    Raises:
        UserError: which ones, and what to set.
    """
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
