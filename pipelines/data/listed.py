"""The rows of a run as its data set lists them; no image is opened."""

from __future__ import annotations

from pipelines.config.run import RunConfig
from pipelines.data import roots
from pipelines.data.places import Trusted
from pipelines.errors import UserError
from pipelines.storage.shards import location
from reid_core.types import Dataset, Split


def read(config: RunConfig) -> Dataset:
    """The data set that the configuration names.

    Raises:
        UserError: no such folder, or another layout in it.
    """
    root, trial = config.data.root, config.data.trial
    trusted = Trusted(config.data.extra_roots, config.data.allow_http)
    if trial == "all":
        raise UserError("data.trial=all is for `crossreid train` alone: choose one from 1 to 10")
    if "://" in location(root):
        return roots.read(config.data.kind, root, trusted=trusted)
    roots.require_folder(root)
    return roots.read(config.data.kind, root.resolve(), trial=trial, trusted=trusted)


def fit_rows(dataset: Dataset, config: RunConfig) -> Split:
    """What is trained on."""
    samples = dataset.train.samples
    if config.data.fit == "train+val":
        samples += dataset.val.samples
    return Split(samples)
