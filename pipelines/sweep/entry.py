"""What a sweep is refused for before it costs anything: what would end all of its trials."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.config.run import RunConfig
from pipelines.data import gate, sound_settings, sound_weights
from pipelines.errors import UserError
from pipelines.sweep import objective, search_space
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.search_space import Study, Values

log = logging.getLogger(__name__)
_DRAWN = 8  # points that stand for a space whose points depend on scores
_MODELS = 8  # that are read to see that they can be; seconds each
_OF_A_MODEL = ("name", "pretrained", "height", "width", "pool", "patch_stride", "stem_blocks")


def check(study: Study, ledger: Ledger) -> None:
    """Pass the gate with the settings and models of all trials, and with the data of one.

    A trial that cannot train is warned of: it will be written down as failed.

    Raises:
        UserError: no trial can train; names the values of the first, what is wrong and what to do.
    """
    points = search_space.points(study)
    left = search_space.drawn(study, _DRAWN) if points is None else ledger.left(points)
    seed = study.search.seeds[0]
    objective.require_identities(study, search_space.trial_config(study, {}, seed))
    passed: list[tuple[Values, RunConfig]] = []
    refused: list[UserError] = []
    models: dict[str, str] = {}  # what is wrong with each, "" for nothing
    for values in left:
        config = search_space.trial_config(study, values, seed)
        try:
            with _of_a_trial(values):
                sound_settings.check(config)
                _check_model(config, models)
            passed.append((values, config))
        except UserError as error:
            refused.append(error)
    if left and not passed:
        raise refused[0]
    for reason in refused:
        log.warning("%s; it will fail, and the others go on", reason)
    for values, config in passed[:1]:
        with _of_a_trial(values):
            gate.check(config, ledger.root)


def _check_model(config: RunConfig, models: dict[str, str]) -> None:
    """Read the weights, once for all trials of the same model."""
    parts = [getattr(config.model, name) for name in _OF_A_MODEL]
    key = str((config.method, *parts, config.model.lora_rank > 0))
    if key not in models and len(models) < _MODELS:
        try:
            sound_weights.check(config)
            models[key] = ""
        except UserError as error:
            models[key] = str(error)
    if wrong := models.get(key):
        raise UserError(wrong)


@contextmanager
def _of_a_trial(values: Values) -> Iterator[None]:
    """What is refused within the block is said with the values that it was refused for."""
    try:
        yield
    except UserError as error:
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        raise UserError(f"a trial with {said or 'the recipe as it is'}: {error}") from error
