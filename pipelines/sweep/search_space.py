"""What a sweep is: its file, and the points that it tries.

A trial is one choice of values, trained once per seed into a run directory of its own and judged
by identities who are neither trained on nor tested on, or without any label by its clusters.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipelines.config import files
from pipelines.config import run as configuration
from pipelines.config.files import Tree
from pipelines.config.overrides import put, split_override
from pipelines.config.run import RunConfig
from pipelines.config.sections import Section
from pipelines.errors import UserError
from pipelines.storage.files import Json
from reid_core.methods import METHODS

Values = dict[str, Json]
"""Dotted configuration key -> value: what distinguishes a trial."""

STABILITY = "stability"
_ON_VALIDATION: Values = {
    "data.fit": "train",
    "evaluation.split": "val",
    "evaluation.start": False,
    "evaluation.calibrate": False,
}


class Domain(Section):
    """What one key may be; exactly one of these.

    Attributes:
        values: one of a list; the only kind that `grid` and `axes` can enumerate.
        uniform: a number between two ends.
        loguniform: the same, evenly spread over orders of magnitude; for weights and rates.
        integers: a whole number between two ends, both included.
    """

    values: tuple[JsonValue, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integers: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in type(self).model_fields) != 1:
            kinds = ", ".join(sorted(type(self).model_fields))
            raise ValueError(f"give exactly one of {kinds}")
        ends = self.uniform or self.loguniform or self.integers
        if ends and not ends[0] < ends[1]:
            raise ValueError("the first end must be below the second")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs ends above 0")
        return self

    def examples(self) -> Sequence[Json]:
        """Values that show whether the whole domain is valid: all of a list, else both ends."""
        return self.values or self.uniform or self.loguniform or self.integers or ()

    def draw(self, rng: np.random.Generator) -> Json:
        """A random value."""
        if self.values:
            return self.values[int(rng.integers(len(self.values)))]
        if self.uniform:
            return float(rng.uniform(*self.uniform))
        if self.loguniform:
            low, high = np.log(self.loguniform)
            return float(np.clip(np.exp(rng.uniform(low, high)), *self.loguniform))
        assert self.integers
        return int(rng.integers(self.integers[0], self.integers[1], endpoint=True))


class Budget(Section):
    """When to stop.

    Attributes:
        trials: how many; needed by random and optuna, for grid and axes a limit.
        minutes: wall time of one command; what is then running is taken up by --resume.
        concurrent: trials at a time, at most; fewer where the cluster is smaller.
    """

    trials: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    concurrent: int = Field(1, ge=1)


class Asha(Section):
    """Successive halving: the worse trials of the same age end early.

    Attributes:
        grace_epochs: no trial ends before this many epochs, counted over all stages.
        reduction: one in this many goes on at every halving.
    """

    grace_epochs: int = Field(ge=1)
    reduction: int = Field(3, ge=2)


class Search(Section):
    """A search file.

    Attributes:
        base: recipe that the trials start from, a file or the name of one that ships.
        overrides: dotted keys of the recipe that differ in all trials.
        method: "grid" tries every combination; "axes" moves one key at a time, the others as in
            the recipe, which is the figure that papers print; "random" draws; "optuna" learns
            from earlier trials where to look (extra `sweep`).
        space: dotted key -> what it may be.
        objective: what decides, in percent, of the last epoch: a score on validation identities, or
            "stability", which needs no label: how much of the clustering of the epoch before is
            still there (`reid_core.agreement.clustering_stability`, mean over the modalities).
        budget: when to stop.
        seeds: every trial is trained once with each; its score is the mean.
        seed: of the search itself.
        asha: ends bad trials early; None trains all to the end.
    """

    base: str
    overrides: dict[str, JsonValue] = Field(default_factory=dict)
    method: Literal["grid", "axes", "random", "optuna"] = "random"
    space: dict[str, Domain] = Field(min_length=1)
    objective: Literal["rank1", "rank5", "rank10", "mAP", "mINP", "stability"] = "mAP"
    budget: Budget = Budget()
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    seed: int = Field(0, ge=0)
    asha: Asha | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        taken = [key for key in (*self.space, *self.overrides) if key in {"seed", *_ON_VALIDATION}]
        if taken:
            raise ValueError(
                f"{taken[0]} is set by the sweep itself: trials are decided on validation "
                "identities (data.fit=train, evaluation.split=val) with the given seeds"
            )
        if self.method in ("grid", "axes"):
            endless = [key for key, domain in self.space.items() if domain.values is None]
            if endless:
                raise ValueError(f"method={self.method} needs `values` for {endless[0]}")
        elif self.budget.trials is None:
            raise ValueError(f"method={self.method} needs budget.trials")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: the same seed twice is the same run twice")
        if self.asha and len(self.seeds) > 1:
            raise ValueError("asha compares single runs: give one seed, or leave asha out")
        return self


@dataclass(frozen=True)
class Study:
    """A search together with the recipe that it starts from.

    Trials may run on machines that have neither file.

    Attributes:
        search: the search file.
        recipe: the resolved recipe with the overrides of the search and of the command.
    """

    search: Search
    recipe: Tree


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a search file and check every value that a trial could get.

    Args:
        path: a YAML file, or the name of a search that ships in tune_configs.
        overrides: `key=value` for the base recipe, such as "data.root=/data/SYSU-MM01".

    Raises:
        UserError: names the wrong key or value, before any trial starts.
    """
    path = files.find_search(path)
    tree = files.read(path)
    given = dict(split_override(override) for override in overrides)
    written: Json = tree.get("overrides") or {}
    if not isinstance(written, Mapping):
        raise UserError(f"{path}: overrides must be a mapping of keys to values")
    tree["overrides"] = {**written, **given}
    try:
        search = Search.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise UserError(f"{path}:\n  " + "\n  ".join(lines)) from error
    recipe = configuration.load(Path(search.base), search.overrides).model_dump(mode="json")
    study = Study(search, recipe)
    _check_space(study)
    return study


def trial_config(study: Study, values: Values, seed: int) -> RunConfig:
    """What one run of a trial trains: on training identities, measured on validation identities."""
    return _configured(study, {**values, "seed": seed, **_ON_VALIDATION})


def best_config(study: Study, values: Values) -> RunConfig:
    """The recipe with a trial's values: trained and measured as the recipe says."""
    return _configured(study, {**values, "seed": study.search.seeds[0]})


def base_values(study: Study) -> Values:
    """What the recipe itself says for the keys of the space."""
    return {key: _look_up(study.recipe, key) for key in study.search.space}


def points(study: Study) -> list[Values] | None:
    """Everything that the search tries, in order; None where later points depend on scores.

    The first points of a random search do not depend on how many follow.
    """
    search = study.search
    listed: list[Values]
    if search.method == "optuna":
        return None
    if search.method == "random":
        assert search.budget.trials
        listed = [_draw(search, number) for number in range(search.budget.trials)]
    elif search.method == "axes":
        base = base_values(study)
        listed = [base]
        for key, domain in search.space.items():
            listed += [base | {key: value} for value in domain.values or ()]
    else:
        choices = [domain.values or () for domain in search.space.values()]
        listed = [dict(zip(search.space, row, strict=True)) for row in itertools.product(*choices)]
    unique = [point for i, point in enumerate(listed) if point not in listed[:i]]
    return unique[: search.budget.trials]


def examples(study: Study) -> list[Values]:
    """Trials that show whether the whole space is valid: each moves one key from the recipe."""
    domains = study.search.space.items()
    return [{key: value} for key, domain in domains for value in domain.examples()]


def drawn(study: Study, count: int) -> list[Values]:
    """Points as a search whose points depend on scores may ask for, each with all keys."""
    return [_draw(study.search, number) for number in range(count)]


def _draw(search: Search, number: int) -> Values:
    rng = np.random.default_rng([search.seed, number])
    return {key: domain.draw(rng) for key, domain in search.space.items()}


def _configured(study: Study, values: Values) -> RunConfig:
    tree = copy.deepcopy(study.recipe)
    for key, value in values.items():
        put(tree, key, value, said=f"{study.search.base} with {key}={value}")
    return configuration.validate(tree, source=study.search.base)


def _check_space(study: Study) -> None:
    search = study.search
    base = trial_config(study, {}, search.seeds[0])
    _check_objective(search, base)
    methods = {
        base.method,
        *(search.space["method"].examples() if "method" in search.space else ()),
    }
    for key in search.space:
        section = key.partition(".")[0]
        if section in METHODS and section not in methods:
            raise UserError(
                f"space: {key} is a setting of {section}, which nothing would read with "
                f"method={base.method}: search a key of {base.method}"
            )
    for values in examples(study):
        _check_objective(search, trial_config(study, values, search.seeds[0]))
    for seed in search.seeds:
        trial_config(study, {}, seed)
    if search.objective == STABILITY:
        return  # every epoch is measured
    if search.asha and not _evaluates(base.settings.model_dump()):
        raise UserError(
            "asha has nothing to compare: no stage of the recipe is measured while it trains; "
            "set an evaluate_every above 0 in `overrides`"
        )


def _check_objective(search: Search, config: RunConfig) -> None:
    """Stability is that of the last stage's clusters: there must be some, twice."""
    if search.objective != STABILITY:
        return
    method, settings = METHODS[config.method], config.settings
    if method.supervision(settings) == "identities":
        raise UserError(
            f"objective: {STABILITY} compares clusters, and {config.method} is given identities "
            "here: choose mAP"
        )
    last = method.stages(settings)[-1]
    if getattr(settings, last).epochs < 2:
        raise UserError(
            f"objective: {STABILITY} compares an epoch with the one before: "
            f"{config.method}.{last}.epochs must be at least 2"
        )


def _evaluates(tree: Mapping[str, Json]) -> bool:
    return any(
        _evaluates(value) if isinstance(value, Mapping) else key == "evaluate_every" and bool(value)
        for key, value in tree.items()
    )


def _look_up(tree: Tree, key: str) -> Json:
    value: Json = tree
    for part in key.split("."):
        assert isinstance(value, Mapping)  # the space was checked
        value = value[part]
    return value


def _explain(item: ErrorDetails) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{key}: {configuration.in_words(item)}".removeprefix(": ")
    sections: dict[str, type[Section]] = {"budget": Budget, "asha": Asha, "space": Domain}
    model = sections.get(str(item["loc"][0]), Search) if len(item["loc"]) > 1 else Search
    return f"unknown key {key}; valid keys here: {', '.join(sorted(model.model_fields))}"
