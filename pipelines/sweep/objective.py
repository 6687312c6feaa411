"""Whether what a sweep is judged by can be measured on its data."""

from __future__ import annotations

from pipelines.config.run import RunConfig
from pipelines.data.listed import read
from pipelines.data.measurable import why_unmeasured
from pipelines.errors import UserError
from pipelines.sweep import search_space
from pipelines.sweep.search_space import Study
from reid_core.methods import METHODS


def require_identities(study: Study, config: RunConfig) -> None:
    """A score needs identities that it can be measured on.

    Raises:
        UserError: the data have none; names what else can be searched by.
    """
    if study.search.objective == search_space.STABILITY:
        return
    dataset = read(config)
    if reason := why_unmeasured(dataset.kind, dataset.val, METHODS[config.method].inputs):
        none = "has none" if not len(dataset.val) else f"cannot be judged, since {reason}"
        raise UserError(
            f"objective: {study.search.objective} is measured on validation identities, and "
            f"data.root={config.data.root} {none}: give some, or choose "
            f"objective: {search_space.STABILITY}, which needs no label"
        )
