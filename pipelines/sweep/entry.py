"""What a sweep is refused for before it costs anything: what would end all of its trials."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.config.run import RunConfig
from pipelines.data import gate, room, sound_settings, sound_weights, trainable
from pipelines.data.listed import fit_rows, read
from pipelines.data.measurable import why_unmeasured
from pipelines.data.sound_weights import Weights
from pipelines.errors import UserError
from pipelines.sweep import search_space
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.search_space import Study, Values
from reid_core.methods import METHODS
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
    asked = _Asked()
    if study.search.objective != search_space.STABILITY:
        _require_identities(study, search_space.trial_config(study, {}, seed), asked)
    passed: list[tuple[Values, RunConfig]] = []
    refused: list[UserError] = []
    for values in left:
        config = search_space.trial_config(study, values, seed)
        try:
            with _of_a_trial(values):
                asked.check(config)
            passed.append((values, config))
        except UserError as error:
            refused.append(error)
    for sentence in asked.warnings:
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
            gate.check_run(config, ledger.root, asked.rows(config)[0])
            room.check_disk(config, [ledger.root], asked.weights(config).encoder_bytes)


def _require_identities(study: Study, config: RunConfig, asked: _Asked) -> None:
    """A score needs identities that it can be measured on.

    Raises:
        UserError: the data have none; names what else can be searched by.
    """
    dataset, _ = asked.rows(config)
    if reason := why_unmeasured(dataset.kind, dataset.val, METHODS[config.method].inputs):
        none = "has none" if not len(dataset.val) else f"cannot be judged, since {reason}"
        raise UserError(
            f"objective: {study.search.objective} is measured on validation identities, and "
            f"data.root={config.data.root} {none}: give some, or choose "
            f"objective: {search_space.STABILITY}, which needs no label"
        )


class _Asked:
    """What trials have in common is looked at once: models are read, data sets listed.

    Attributes:
        warnings: sentences on settings without effect and on weights, each once.
    """

    def __init__(self) -> None:
        self.warnings: dict[str, None] = {}
        self._models: dict[str, Weights | UserError] = {}  # or what is wrong with them
        self._data: dict[str, tuple[Dataset, Split]] = {}

    def check(self, config: RunConfig) -> None:
        """Refuse a trial that cannot train.

        Raises:
            UserError: why it cannot.
        """
        self.warnings |= dict.fromkeys(sound_settings.check(config))
        if len(self._models) < _MODELS or _model(config) in self._models:
            self.warnings |= dict.fromkeys(self.weights(config).remarks)
        trainable.check_rows(*self.rows(config), config)

    def rows(self, config: RunConfig) -> tuple[Dataset, Split]:
        """The data set as listed, and what is trained on.

        Raises:
            UserError: see `pipelines.data.listed.read`.
        """
        key = str(config.data.model_dump(mode="json"))
        if key not in self._data:
            dataset = read(config)
            self._data[key] = dataset, fit_rows(dataset, config)
        return self._data[key]

    def weights(self, config: RunConfig) -> Weights:
        """What is known of the model.

        Raises:
            UserError: see `pipelines.data.sound_weights.check`.
        """
        key = _model(config)
        if key not in self._models:
            try:
                self._models[key] = sound_weights.check(config)
            except UserError as error:
                self._models[key] = error
        result = self._models[key]
        if isinstance(result, UserError):
            raise UserError(str(result))
        return result


def _model(config: RunConfig) -> str:
    """Trials of the same words share a model."""
    parts = [getattr(config.model, name) for name in _OF_A_MODEL]
    return str((config.method, *parts, config.model.lora_rank > 0))


@contextmanager
def _of_a_trial(values: Values) -> Iterator[None]:
    """What is refused within the block is said with the values that it was refused for."""
    try:
        yield
    except UserError as error:
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        raise UserError(f"a trial with {said or 'the recipe as it is'}: {error}") from error
