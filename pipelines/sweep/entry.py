"""What a sweep is refused for before it costs anything: what would end its trials one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.data import gate
from pipelines.errors import UserError
from pipelines.sweep import objective, search_space
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.search_space import Study, Values


def check(study: Study, ledger: Ledger) -> None:
    """Pass the gate with the settings and models of all trials, and with the data of the first.

    Where the points depend on scores, the recipe and the ends of each key's values stand for them.

    Raises:
        UserError: names the values of the trial, what is wrong and what to do.
    """
    points = search_space.points(study)
    left = [{}, *search_space.examples(study)] if points is None else ledger.left(points)
    seed, models = study.search.seeds[0], []
    objective.require_identities(study, search_space.trial_config(study, {}, seed))
    trials = [(values, search_space.trial_config(study, values, seed)) for values in left]
    for values, config in trials:
        with _of_a_trial(values):
            gate.refuse_settings(config)
    for number, (values, config) in enumerate(trials):
        with _of_a_trial(values):
            if not number:
                gate.check(config, ledger.root)
            elif config.model not in models:
                gate.check_weights(config)
        models.append(config.model)


@contextmanager
def _of_a_trial(values: Values) -> Iterator[None]:
    """What is refused within the block is said with the values that it was refused for."""
    try:
        yield
    except UserError as error:
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        raise UserError(f"a trial with {said or 'the recipe as it is'}: {error}") from error
