"""What training rows must have, and must not share with those that are measured."""

from __future__ import annotations

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.storage.shards import location
from reid_core.methods import METHODS
from reid_core.types import OUTLIER, Dataset, Modality, Split


def check_rows(dataset: Dataset, train: Split, config: RunConfig) -> None:
    """Refuse rows that the method cannot train on.

    Args:
        dataset: where the rows are from.
        train: the rows.
        config: of the run.

    Raises:
        UserError: a modality without a row, or rows without a camera, an image or a pid that the
            settings ask for; names how many and the first of them.
    """
    where, method = location(dataset.root), METHODS[config.method]
    if not len(train):
        raise UserError(f"{where} has no training rows")
    for m in method.inputs:
        if not len(train.rows(m)):
            raise UserError(
                f"{where} has no {m} rows to train on: {config.method} trains on "
                f"{' and '.join(method.inputs)}"
            )
    _check_cameras(train, config, where)
    _check_captions(train, config, where)
    known = method.supervision(config.settings)
    for m in method.inputs:
        rows = train.rows(m)
        tracked = known == "within" and bool((train.tracklets[rows] != OUTLIER).all())
        if known in ("none", "pairs") or tracked:
            continue
        if (unknown := rows[train.pids[rows] == OUTLIER]).size:
            raise UserError(
                f"{where}: {len(unknown):,} {m} rows have no pid, as "
                f"{train.samples[unknown[0]].image}; {config.method} with these settings trains on "
                "ids: give them, or choose settings that need none"
            )


def refuse_shared_identities(dataset: Dataset, train: Split, config: RunConfig) -> None:
    """Scores of identities that were trained on say nothing about identities never seen.

    Args:
        dataset, train, config: see `check_rows`.

    Raises:
        UserError: an identity or an image is trained on and measured, and no setting allows that.
    """
    if config.data.allow_shared_identities:
        return
    remedy = (
        "put each identity into one split (crossreid data check lists them), or set "
        "data.allow_shared_identities=true for an experiment of your own"
    )
    names = {config.evaluation.split} | ({"val"} if config.evaluation.select else set())
    for name in sorted(names):
        split: Split = getattr(dataset, name)
        shared = sorted(set(train.pids.tolist()) & set(split.pids.tolist()) - {OUTLIER})
        images = {sample.image for sample in train.samples}
        twice = [sample.image for sample in split.samples if sample.image in images]
        if shared or twice:
            what = f"{len(shared):,} identities, as {shared[0]}" if shared else ""
            what = what or f"{len(set(twice)):,} images, as {twice[0]}"
            where = location(dataset.root)
            raise UserError(f"{where}: train and {name} share {what}: {remedy}")


def _check_captions(train: Split, config: RunConfig, where: str) -> None:
    if Modality.TEXT not in METHODS[config.method].inputs:
        return
    images = {train.samples[row].image for row in train.rows(Modality.VISIBLE)}
    described = [train.samples[row].image for row in train.rows(Modality.TEXT)]
    if homeless := [image for image in described if image not in images]:
        raise UserError(
            f"{where}: {len(homeless):,} training captions describe no training image, as "
            f"{homeless[0] or 'one that names none'}: {config.method} trains on pairs; list the "
            "images, or leave those captions out"
        )


def _check_cameras(train: Split, config: RunConfig, where: str) -> None:
    method = METHODS[config.method]
    needed = method.needs_cameras(config.settings)
    if needed is None:
        return
    for m in method.inputs:
        rows = train.rows(m)
        if (unknown := rows[train.cameras[rows] == OUTLIER]).size:
            raise UserError(
                f"{where}: {len(unknown):,} {m} rows have no camera, as "
                f"{train.samples[unknown[0]].image}; {needed.setting} needs one for every image: "
                f"give them in a manifest's column 'camera', or do without, {needed.without}"
            )
