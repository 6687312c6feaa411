"""What a method needs of its training rows, and a data set may lack."""

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
    asking = method.needs_cameras(config.settings)
    without = asking.partition("=")[0] + ("=false" if asking.endswith("=true") else "=null")
    for m in method.inputs if asking else ():
        rows = train.rows(m)
        if (unknown := rows[train.cameras[rows] == OUTLIER]).size:
            raise UserError(
                f"{where}: {len(unknown):,} {m} rows have no camera, as "
                f"{train.samples[unknown[0]].image}; {asking} needs one for every image: give them "
                f"in a manifest's column 'camera', or do without, {without}"
            )
