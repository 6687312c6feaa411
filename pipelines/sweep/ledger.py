"""The folder of a sweep: what was tried, what is left, what was best.

search.yaml            the search, with the overrides of the command
trials/NAME/           values.json, and a run directory per seed
trials.jsonl           a line per trial that is over: name, config, status, scores, seconds
best.yaml              recipe with the best values, for `crossreid train`
report.html            the trials, and the score against each key
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

import yaml
from rich.markup import escape
from rich.table import Table

from pipelines.config import files
from pipelines.config import run as configuration
from pipelines.config.files import Tree
from pipelines.errors import UserError
from pipelines.runs.records import EpochLine
from pipelines.storage.files import Json, replace_file, to_json, write_json
from pipelines.storage.shards import location
from pipelines.sweep import search_space
from pipelines.sweep.search_space import STABILITY, Study, Values

log = logging.getLogger(__name__)
SEARCH, TRIALS, BEST, FOLDER = "search.yaml", "trials.jsonl", "best.yaml", "trials"
_VALUES = "values.json"
_SHOWN = 20


@dataclass(frozen=True)
class SweepTrial:
    """A trial that is over.

    Attributes:
        name: of its folder.
        config: its values, by dotted key.
        status: "finished"; "stopped" by successive halving, its scores are those of its last
            measured epoch; "failed".
        scores: mean over seeds of what the last epoch is judged by, see `scores_of`.
        seconds: wall time since it was last taken up.
        runs: per seed its scores.
        error: why it failed.
    """

    name: str
    config: Values
    status: Literal["finished", "stopped", "failed"]
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    runs: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str = ""


class Ledger:
    """The folder of one sweep. Written by the driver of the sweep alone, which holds it.

    Args:
        root: the folder.
        study: what is searched.
        resume: go on with a sweep that is there.

    Raises:
        UserError: not writable; holds a sweep and `resume` is False, or another search.
    """

    def __init__(self, root: Path, study: Study, *, resume: bool) -> None:
        self.root = root.resolve()
        try:
            (self.root / FOLDER).mkdir(parents=True, exist_ok=True)
            _claim(self.root / SEARCH, study, resume=resume)
        except OSError as error:
            raise UserError(
                f"cannot write to {root}: {error.strerror}; choose another --out"
            ) from error
        # A trial that failed is tried again: its cause may be gone.
        before = read(self.root)
        self.over = [trial for trial in before if trial.status != "failed"]
        self._to_try_again = [trial for trial in before if trial.status == "failed"]
        self._taken = {trial.name for trial in self.over}

    def folder(self, name: str) -> Path:
        """Where a trial's run directories lie."""
        return self.root / FOLDER / name

    def pending(self) -> dict[str, Values]:
        """Trials that were begun and are not over, in the order in which they were begun."""
        result = {}
        for path in sorted((self.root / FOLDER).glob(f"*/{_VALUES}")):
            if path.parent.name not in {trial.name for trial in self.over}:
                result[path.parent.name] = json.loads(path.read_text())
        return result

    def left(self, points: Sequence[Values]) -> list[Values]:
        """The points that are not over yet."""
        done = [trial.config for trial in self.over]
        return [point for point in points if point not in done]

    def begin(self, values: Values) -> str:
        """Name a trial: that of an interrupted one with the same values, else a new number."""
        for name, known in self.pending().items():
            if known == values and name not in self._taken:
                self._taken.add(name)
                return name
        name = f"trial-{1 + max(map(_number, self._names()), default=-1):03d}"
        self.folder(name).mkdir()
        write_json(self.folder(name) / _VALUES, values, indent=None)
        self._taken.add(name)
        return name

    def _names(self) -> set[str]:
        """Of all trials that have a folder, or had one."""
        return self._taken | {folder.name for folder in (self.root / FOLDER).iterdir()}

    def end(self, trial: SweepTrial) -> None:
        """Add a line; the file is replaced as a whole, so a kill leaves the old or the new one."""
        self.over.append(trial)
        self._to_try_again = [one for one in self._to_try_again if one.name != trial.name]
        lines = [to_json(asdict(one), indent=None) for one in (*self.over, *self._to_try_again)]
        replace_file(self.root / TRIALS, "".join(lines))


def read(root: Path) -> list[SweepTrial]:
    """The trials of a sweep that are over.

    Raises:
        UserError: a line that is damaged.
    """
    path = root / TRIALS
    if not path.exists():
        return []
    trials = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            trials.append(SweepTrial(**json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}, is no trial of a sweep: take the line out, and tune again "
                "with --resume"
            ) from error
    return trials


def ranked(trials: Sequence[SweepTrial], objective: str) -> list[SweepTrial]:
    """Best first; failed ones last, stopped ones after all that finished."""
    order = ("finished", "stopped", "failed")
    return sorted(
        trials, key=lambda t: (order.index(t.status), -t.scores.get(objective, float("-inf")))
    )


def write_best(root: Path, study: Study) -> SweepTrial:
    """Write best.yaml: the recipe with the best values, fit and measured as the recipe says.

    Raises:
        UserError: no trial finished with a score; quotes the first error.
    """
    objective = study.search.objective
    trials = ranked(read(root), objective)
    if not trials or trials[0].status != "finished" or objective not in trials[0].scores:
        errors = [trial.error for trial in trials if trial.error]
        reason = f": {errors[0]}" if errors else "; give it more minutes and use --resume"
        raise UserError(f"no trial of the sweep finished{reason}")
    best = trials[0]
    values = ", ".join(f"{key}={value}" for key, value in best.config.items())
    header = (
        f"# {values}\n"
        f"# {best.name}: {objective} {best.scores[objective]:.2f} % ({judged(objective)}), "
        f"mean of {len(best.runs)} seed(s), best of {len(trials)} trials.\n"
        f"# Searched from {study.search.base}. Reached on test identities: not measured.\n"
    )
    recipe = search_space.best_config(study, best.config)
    replace_file(root / BEST, header + configuration.dump(recipe))
    return best


def scores_of(line: EpochLine) -> dict[str, float]:
    """What can judge an epoch, in percent, from its line of the log.

    Scores on validation identities where it was measured, and where it clustered and was not the
    first of its stage how stable the clusters are.
    """
    stability = line.get("stability", {})
    result = {STABILITY: 100 * fmean(stability.values())} if stability else {}
    return {**line.get("scores", {}), **result}


def judged(objective: str) -> str:
    """What the objective looks at, in words."""
    if objective == STABILITY:
        return "last two clusterings, no label"
    return "validation identities"


def mean_scores(runs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score that all runs have; a warning names what some lack."""
    names = dict.fromkeys(name for scores in runs.values() for name in scores)
    lacking = {name: [run for run, scores in runs.items() if name not in scores] for name in names}
    for name, some in lacking.items():
        if some:
            log.warning("no mean of %s: seed %s has none", name, " and ".join(some))
    return {
        name: fmean(scores[name] for scores in runs.values()) for name in names if not lacking[name]
    }


def table(trials: Sequence[SweepTrial], objective: str) -> Table:
    """The best trials, one line each."""
    first = ranked(trials, objective)
    shown = Table(
        title=f"{len(trials)} trials, best {min(_SHOWN, len(trials))} by {objective} "
        f"(%, {judged(objective)})",
        title_justify="left",
    )
    keys = list(first[0].config) if first else []
    names = [objective, *(name for name in ("rank1", "mAP") if name != objective)]
    for name in ("trial", *keys, *names, "minutes", "status"):
        shown.add_column(escape(name), justify="left" if name in ("trial", "status") else "right")
    for trial in first[:_SHOWN]:
        shown.add_row(
            trial.name,
            *(_short(trial.config[key]) for key in keys),
            *(f"{trial.scores[name]:.2f}" if name in trial.scores else "-" for name in names),
            f"{trial.seconds / 60:.1f}",
            trial.status,
        )
    return shown


def sensitivity(
    trials: Sequence[SweepTrial], objective: str, *, method: str
) -> dict[str, list[tuple[str | float, float]]]:
    """Per key (value, score) in the order of the values, as papers draw it.

    The score is the best one that a finished trial with this value reached: the others at their
    best. Of a sweep by `axes`, which never moves two keys at once, only those count in which the
    other keys kept their usual value. Keys of which only one value was tried are left out.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    if not finished:
        return {}
    keys = list(finished[0].config)
    shown = [{key: _comparable(trial.config[key]) for key in keys} for trial in finished]
    usual = {key: Counter(one[key] for one in shown).most_common(1)[0][0] for key in keys}
    curves: dict[str, list[tuple[str | float, float]]] = {}
    for key in keys:
        best: dict[str | float, float] = {}
        for trial, one in zip(finished, shown, strict=True):
            if method != "axes" or all(one[k] == usual[k] for k in keys if k != key):
                best[one[key]] = max(trial.scores[objective], best.get(one[key], float("-inf")))
        if len(best) > 1:
            curves[key] = sorted(best.items(), key=_in_order)
    return curves


def _number(name: str) -> int:
    """Of a trial; -1 for a folder that is none of the sweep's."""
    digits = name.removeprefix("trial-")
    return int(digits) if digits.isdecimal() and digits != name else -1


def _comparable(value: Json) -> str | float:
    return value if isinstance(value, str | int | float) else str(value)


def _in_order(item: tuple[str | float, float]) -> tuple[float, str]:
    """Numbers by size, whether whole or not; words after them."""
    value = item[0]
    return (float("inf"), value) if isinstance(value, str) else (value, "")


def _short(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _claim(path: Path, study: Study, *, resume: bool) -> None:
    content = study.search.model_dump(mode="json") | {"recipe": study.recipe}
    if path.exists():
        if not resume:
            raise UserError(f"{path.parent} holds a sweep: add --resume, or choose another --out")
        before = _identity(files.read(path), str(path))
        changed = configuration.differences(before, _identity(content, "search"))
        if changed:
            raise UserError(
                f"{path.parent} holds another sweep:\n  "
                + "\n  ".join(changed)
                + "\nchoose another --out, or delete that folder"
            )
    replace_file(path, yaml.safe_dump(content, sort_keys=False))


def _identity(content: Mapping[str, Json], source: str) -> Tree:
    """What decides the scores: neither the budget, which may grow, nor where the files lay.

    The data's root stays: nothing else guards against scores of two data sets in one table.
    """
    written = content["recipe"]
    assert isinstance(written, dict)
    recipe = configuration.validate(written, source=source)
    compared = content.keys() - {"budget", "base", "overrides", "recipe"}
    decisive: Tree = {"recipe": recipe.identity(), "data.root": location(recipe.data.root)}
    return {key: content[key] for key in compared} | decisive
