"""What a sweep is refused for before it costs anything: what would end all of its trials."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.config.run import RunConfig
from pipelines.data import gate, sound_settings, sound_weights, trainable
from pipelines.data.listed import fit_rows, read
from pipelines.errors import UserError
from pipelines.sweep import objective, search_space
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.search_space import Study, Values
from reid_core.types import Dataset, Split

log = logging.getLogger(__name__)
_DRAWN = 8  # points that stand for a space whose points depend on scores
_MODELS = 8  # that are read to see that they can be; seconds each
_OF_A_MODEL = ("name", "pretrained", "height", "width", "pool", "patch_stride", "stem_blocks")


def check(study: Study, ledger: Ledger) -> None:
    """Ask of each trial what the gate asks: settings, model and rows; of one, all of it.

    A trial that cannot train is warned of: it will be written down as failed. Where scores decide
    which points are tried, some that may be are asked about, and one is warned of.

    Raises:
        UserError: no trial can train; names the values of the first, what is wrong and what to do.
    """
    points = search_space.points(study)
    left = search_space.drawn(study, _DRAWN) if points is None else ledger.left(points)
    seed = study.search.seeds[0]
    objective.require_identities(study, search_space.trial_config(study, {}, seed))
    passed: list[tuple[Values, RunConfig]] = []
    refused: list[UserError] = []
    asked = _Asked()
    for values in left:
        config = search_space.trial_config(study, values, seed)
        try:
            with _of_a_trial(values):
                asked.check(config)
            passed.append((values, config))
        except UserError as error:
            refused.append(error)
    own = sound_settings.check(passed[0][1]) if passed else []  # which the gate says below
    for sentence in asked.idle:
        if sentence not in own:
            log.warning("%s", sentence)
    if points is None:
        if refused:
            log.warning("such trials would fail, and the others go on: %s", refused[0])
    elif left and not passed:
        raise refused[0]
    else:
        for reason in refused:
            log.warning("%s; it will fail, and the others go on", reason)
    for values, config in passed[:1]:
        with _of_a_trial(values):
            gate.check(config, ledger.root)


class _Asked:
    """What trials have in common is looked at once: models are read, data sets listed.

    Attributes:
        idle: sentences on settings without effect, each once.
    """

    def __init__(self) -> None:
        self.idle: dict[str, None] = {}
        self._models: dict[str, str] = {}  # what is wrong with each, "" for nothing
        self._data: dict[str, tuple[Dataset, Split]] = {}

    def check(self, config: RunConfig) -> None:
        """Refuse a trial that cannot train.

        Raises:
            UserError: why it cannot.
        """
        self.idle |= dict.fromkeys(sound_settings.check(config))
        self._check_model(config)
        key = str(config.data.model_dump(mode="json"))
        if key not in self._data:
            dataset = read(config)
            self._data[key] = dataset, fit_rows(dataset, config)
        trainable.check_rows(*self._data[key], config)

    def _check_model(self, config: RunConfig) -> None:
        parts = [getattr(config.model, name) for name in _OF_A_MODEL]
        key = str((config.method, *parts, config.model.lora_rank > 0))
        if key not in self._models and len(self._models) < _MODELS:
            try:
                sound_weights.check(config)
                self._models[key] = ""
            except UserError as error:
                self._models[key] = str(error)
        if wrong := self._models.get(key):
            raise UserError(wrong)


@contextmanager
def _of_a_trial(values: Values) -> Iterator[None]:
    """What is refused within the block is said with the values that it was refused for."""
    try:
        yield
    except UserError as error:
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        raise UserError(f"a trial with {said or 'the recipe as it is'}: {error}") from error
